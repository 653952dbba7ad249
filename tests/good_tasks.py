"""A task of each language that passes every rule, and what a test changes in it."""

GOOD = {
    "en": {
        "category": "writing",
        "instruction": "Write a short note to a neighbour.",
        "input": "",
        "output": "Thank you for your help.",
    },
    "ko": {
        "category": "writing",
        "instruction": "이웃에게 보낼 짧은 쪽지를 써 주세요.",
        "input": "",
        "output": "도와주셔서 감사합니다.",
    },
}


def task(language: str = "en", **changes) -> dict:
    return {"language": language} | GOOD[language] | changes
