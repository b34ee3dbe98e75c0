"""A user's reward that an untrained model earns now and then, so that its groups differ."""


def vowels(completion: str, gold: str, problem_type: str) -> float:
    return sum(c in "aeiou" for c in completion) / (len(completion) + 1)


def with_e(completion: str, gold: str, problem_type: str) -> float:
    """0 or 1, so that some groups do not."""
    return float("e" in completion)


def fails_for_cut_ones(completion, ended):
    if not ended:
        raise ConnectionError(f"the judge is not there for {completion!r}")
    return {"vowels": vowels(completion, "", ""), "opinion": None}


def wrong_name(text):
    return 1.0
