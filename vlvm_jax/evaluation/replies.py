"""The parts of a reply that rules read: what follows the reasoning, what is tagged as the answer, answer phrases."""

import re
import unicodedata

_THOUGHT_END = re.compile(r"</think(?:ing)?>|◁/think▷", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?>|◁think▷", re.IGNORECASE)
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_BOX_TOKENS = re.compile(r"<\|begin_of_box\|>((?:(?!<\|begin_of_box\|>).)*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)

_FONT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}")
_MATHS = re.compile(r"\\([()\[\]])")
_SET_APART = re.compile(r"(?<!\w)(\*{1,3}|__?|`|\"|'|\$)\(?([A-Za-z])\)?[.:)]?\1(?!\w)")
_EMPHASIS = re.compile(r"\*+|`|__")
_QUOTES = str.maketrans("\u201c\u201d\u2018\u2019\u3010\u3011\u300c\u300d", "\"\"''()()")

# "The answer (to the question) is", "Answer:", "the best choice would be": up to where the answer begins.
_NOUN = r"(?:ans(?:wer)?|option|choice|(?:correct|right|best)\s+(?:letter|one|response))"
_LINK = (
    r"(?:\s+(?:to|for|of|here)\b[^.:;\n]{0,60}?)?\s*"
    r"(?:\b(?:is|would\s+be|must\s+be|should\s+be|will\s+be|has\s+to\s+be|seems\s+to\s+be)\b|:|=)\s*:?\s*"
    r"(?:(?:clearly|definitely|probably|likely|most\s+likely|indeed|therefore|thus)\s*,?\s+)?"
)
_CHINESE = r"(?:答案|正确选项|正確選項)(?:应该|應該|应|應)?(?:选项|選項|选择|選擇|选|選|是|为|為)*\s*:?\s*"
FINAL_PHRASE = re.compile(rf"\bfinal\s+{_NOUN}{_LINK}|(?:最终|最終|最后|最後)的?{_CHINESE}", re.IGNORECASE)
ANSWER_PHRASE = re.compile(
    rf"\b{_NOUN}{_LINK}|{_CHINESE}|(?<![不没])(?:选择|選擇|选|選)\s*:?\s*"
    r"|\bI(?:'d|'ll|\s+would|\s+will)?\s+(?:choose|pick|select|go\s+(?:with|for))\s+",
    re.IGNORECASE,
)
# What stands right before a phrase that denies it, asks, or supposes.
_DOUBTED = re.compile(
    r"\b(?:if|whether|unless|why)\s+(?:the\s+)?(?:\w+\s+)?\Z"
    r"|\b(?:wrong|incorrect|false|worst)\s+\Z"
    r"|(?:\bnot|n't)\s+(?:the|an?)\s+(?:\w+\s+)?\Z"
    r"|(?:\bnot|n't)\s+(?:think|believe|say|sure|certain|mean)\b[^.!?;\n]*\Z"
    r"|\bdoubt[^.!?;\n]*\Z",
    re.IGNORECASE,
)
_BEFORE = 120  # characters


def final_part(reply: str) -> str:
    """What follows a reasoning model's thoughts; nothing where they did not end."""
    ends = [found.end() for found in _THOUGHT_END.finditer(reply)]
    said = reply[ends[-1] :] if ends else reply
    return "" if _THOUGHT.search(said) else said


def tagged(said: str) -> list[str]:
    r"""What stands in `<answer>...</answer>` or `\boxed{...}`, in the order of the kinds.

    One tag of the two is enough: the first may have been the prompt's end, and the second a stop string.
    """
    found = [match[1] for match in _TAG.finditer(said)]
    if not found and (end := _TAG_END.search(said)):
        found = [said[: end.start()]]
    return found + [match[1] for kind in (_BOX, _BOX_TOKENS) for match in kind.finditer(said)]


def plain(said: str) -> str:
    """NFKC without Markdown's and LaTeX's marks; a letter alone in quotes, bold or italics is put in brackets."""
    text = unicodedata.normalize("NFKC", said).translate(_QUOTES)
    text = _MATHS.sub(r"\1", _FONT.sub(r"\1", text))
    return _EMPHASIS.sub("", _SET_APART.sub(r"(\2)", text)).strip().strip("#>-\u2022\"'").strip()


def doubted(text: str, place: int) -> bool:
    """Whether the words before a phrase at this place deny it, ask for it or suppose it."""
    return bool(_DOUBTED.search(text, max(0, place - _BEFORE), place))
