"""The course past one machine: thin drivers on Ray and accelerate. The logic is imported from the
course's modules."""
