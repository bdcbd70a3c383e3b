"""The parts of a reply that rules read: what follows the reasoning, what is tagged as the answer, answer phrases."""

import re
import unicodedata

_THOUGHT_END = re.compile(r"</think(?:ing)?>|◁/think▷", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?>|◁think▷", re.IGNORECASE)
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_BOX_TOKENS = re.compile(r"<\|begin_of_box\|>((?:(?!<\|begin_of_box\|>).)*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)

# What a model writes behind its reply, which some decoders leave in the text.
_REPLY_END = re.compile(
    r"</s>|<eos>|<end_of_turn>|<\|(?:im_end|endoftext|end_of_text|eot_id|eom_id)\|>|<\|end\|>(?=\s*\Z)", re.IGNORECASE
)
_SPEAKER = re.compile(r"(?:assistant|model)\s*:\s*", re.IGNORECASE)
_LINE_MARKS = re.compile(r"(?:[#>\u2022\"'\s]|-(?!\d))*")  # "-2" is a number
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[\n。]")

_LONGEST = 4000  # characters of a reply that is read as a whole
_ENDS = 2000  # characters read at either end of a longer one
MOST_TAGS = 50  # a reply with more marked parts has no answer

_FONT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}")
_MATHS = re.compile(r"\\([()\[\]])")
_SET_APART = re.compile(r"(?<!\w)(\*{1,3}|__?|`|\"|'|\$)\(?([A-Za-z])\)?[.:)]?\1(?!\w)")
_EMPHASIS = re.compile(r"\*+|`|__")
_QUOTES = str.maketrans("\u201c\u201d\u2018\u2019\u3010\u3011\u300c\u300d", "\"\"''()()")

# "The answer (to the question) is", "Answer:", "the best choice would be": up to where the answer begins.
_NOUN = r"(?:ans(?:wer)?|option|choice|(?:correct|right|best)\s+(?:letter|one|response))"
_LINK = (
    r"(?:\s+(?:to|for|of|here)\b[^.:;\n]{0,60}?)?\s*"
    r"(?:\b(?:is|would\s+be|must\s+be|should\s+be|will\s+be|has\s+to\s+be|seems\s+to\s+be)\b|[\"']?\s?[:=])\s*:?\s*"
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
    r"|\bdoubt[^.!?;\n]*\Z"
    r"|\b(?:least|less|opposite\s+of)\s+(?:the\s+)?(?:\w+\s+)?\Z"
    r"|\b(?:second|third|next)[\s\-]+(?:best\s+)?\Z"
    r"|\b(?:wrong|incorrect|false|untrue|inaccurate|mistake|mistaken|tempting)\s+(?:to|that)\b[^.!?;\n]*\Z"
    r"|\b(?:one|some|someone|you|people|many|others|they)\s+(?:might|may|could|can|would|will)\b[^.!?;\n]*\Z",
    re.IGNORECASE,
)
_BEFORE = 120  # characters


def final_part(reply: str) -> str:
    """What follows a reasoning model's thoughts, up to the token that ends a reply; nothing if they did not end."""
    ends = [match.end() for match in _THOUGHT_END.finditer(reply)]
    said = reply[ends[-1] :] if ends else reply
    if _THOUGHT.search(said):
        return ""
    end = _REPLY_END.search(said)
    return said[: end.start()] if end and said[: end.start()].strip() else said


def tagged(said: str) -> list[str]:
    r"""What stands in `<answer>...</answer>` or `\boxed{...}`, in the order of the kinds.

    One tag of the two is enough: the first may have been the prompt's end, and the second a stop string.
    """
    contents = [match[1] for match in _TAG.finditer(said)]
    if not contents and (end := _TAG_END.search(said)):
        contents = [said[: end.start()]]
    return contents + [match[1] for kind in (_BOX, _BOX_TOKENS) for match in kind.finditer(said)]


def shortened(said: str) -> str:
    """The reply, or of a long one the sentences in its first and its last 2,000 characters.

    Replies that long are rambling or repeat themselves, and the time to read them must not grow without bound.
    """
    if len(said) <= _LONGEST:
        return said
    head, tail = said[:_ENDS], said[-_ENDS:]
    last = max((match.end() for match in _SENTENCE_END.finditer(head)), default=0)
    first = next((match.end() for match in _SENTENCE_END.finditer(tail)), len(tail))
    return f"{head[:last]}\n{tail[first:]}"


def plain(said: str) -> str:
    """NFKC without Markdown's and LaTeX's marks; a letter alone in quotes, bold or italics is put in brackets."""
    text = unicodedata.normalize("NFKC", said).translate(_QUOTES)
    text = _MATHS.sub(r"\1", _FONT.sub(r"\1", text))
    text = _LINE_MARKS.sub("", _EMPHASIS.sub("", _SET_APART.sub(r"(\2)", text)), count=1).rstrip(" \t\r\n\"'")
    return _SPEAKER.sub("", text, count=1) if _SPEAKER.match(text) else text


def doubted(text: str, place: int) -> bool:
    """Whether the words before a phrase at this place deny it, ask for it or suppose it."""
    return bool(_DOUBTED.search(text, max(0, place - _BEFORE), place))
