"""The stand-in teacher and judge, and the server through which they speak. They are no models, and
say so."""
