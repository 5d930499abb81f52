"""Whether a completion quotes what only the teacher was to read."""

#: Words in a row that count as a quotation: long enough that common phrases and short sums are none.
QUOTATION_WORDS = 8


def quotes(completion: str, privileged: str, prompt: str) -> bool:
    """Whether `QUOTATION_WORDS` words in a row of the completion stand in the privileged text and not in the prompt.

    Words are what white space separates; nothing is normalised, so a paraphrase does not count.
    """
    return bool((_runs(completion) & _runs(privileged)) - _runs(prompt))


def _runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + QUOTATION_WORDS]) for i in range(len(words) - QUOTATION_WORDS + 1)}
