"""Which option of a multiple-choice question a reply states: the parser `strict`.

All letters are read by the same rules, A and I too: exchanging options, and their letters in the reply, exchanges the
result alike.
"""

import itertools
import re
from collections.abc import Sequence

from vlvm_jax.data.sources.options import LETTERS
from vlvm_jax.evaluation.normalisation import normalise
from vlvm_jax.evaluation.replies import (
    ANSWER_PHRASE,
    FINAL_PHRASE,
    MOST_TAGS,
    doubted,
    final_part,
    plain,
    shortened,
    tagged,
)

_UNNAMED = 5  # letters if the options are not known
_BEFORE = 60  # characters in which a denial stands
_MORE_ENDS = 4  # clause ends looked at beyond those in an option's own text
_MOST_SENTENCES = 200  # looked at for a second letter

# A letter in brackets, or a bare one: no part of a word, of "I'm", of "T-shirt" or of "C++".
_LETTER = re.compile(
    r"[(\[{<]\s*([A-Za-z])\s*[.:]?\s*[)\]}>]|(?<![A-Za-z0-9])([A-Za-z])(?![A-Za-z0-9\u00c0-\u024f]|['\-&]\w|[+#])"
)
_NAME = re.compile(r"(?:the\s+)?(?:options?|choices?|answer|letter|选项|選項)\s*[:#]?\s*", re.IGNORECASE)
_CLOSED = re.compile(r"\s*(?:\Z|[.:;!)\]}](?![A-Za-z0-9])|[。、]|选项|選項|项)|[ \t]*\n")
_MARKS = re.compile(r"(?:[\s.:;,!)\]}。\u2013\u2014]|-(?!\d))*(?:as\s+in\s+)?")
_COMMA = re.compile(r"\s*,")
_BECAUSE = re.compile(
    # "as in the video" gives a reason, "as in apple" spells the letter.
    r"\s*,?\s*(?:(?:because|since|as(?!\s+in\s+(?!(?:the|this|that|these|those|both|all|each)\b))|due\s+to|given|based\s+on|which|rather\s+than|instead\s+of)\b|因为|因為|由于|由於)"
    r"|\s*,\s*(?:and\s+)?not\b",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"[)\]}]?(?:\s*,\s*(?:or\s+|and\s+)?|\s*[/&+、]\s*|\s+(?:or|and)\s+|\s*(?:或者?|和|与|與|及)\s*)", re.IGNORECASE
)
_TEXT_END = re.compile(
    r"[.!;:](?=\s|\Z)|,(?=\s(?!\s*(?:or|and)\b))|[\n。]|\Z|(?=\s+(?:because|since|as|is|was|seems|would|must)\b)",
    re.IGNORECASE,
)

_IS = r"(?:is|was|be|seems|looks|appears|would|could|can|must|may|might|should|does|has)"
_WRONG = r"(?:wrong|incorrect|false|untrue|inaccurate|impossible|unlikely|eliminated|excluded|ruled\s+out)\b"
_DENIED = re.compile(
    rf"[\s.:)]*\b{_IS}\s+(?:\w+\s+){{0,2}}?(?:not\b|never\b|{_WRONG})|[\s.:)]*\b(?:{_IS}n't|can't|cannot|won't)\b"
    rf"|\s*[:\-\u2013\u2014]?\s*(?:{_WRONG}|not\s+(?:correct|right|true)\b)|\s*(?:选项|選項|项)?\s*是?(?:错|錯|不)",
    re.IGNORECASE,
)
# "which I would exclude", "is the option that can be ruled out": the letter itself is what is excluded.
_EXCLUDED = re.compile(
    r"[\s,.:)]*(?:which|that|is\s+the\s+(?:only\s+)?(?:option|choice|answer|letter|one)(?:\s+(?:which|that))?)\s+"
    rf"(?:(?:I|we|you|one)(?:'d|'ll)?\s+(?:(?!not\b|never\b)\w+\s+){{0,3}}?|(?:{_IS}\s+)?(?:(?!not\b|never\b)\w+\s+){{0,2}}?be\s+"
    rf"(?:\w+ly\s+)?|{_IS}\s+(?:\w+ly\s+)?|to\s+)"
    r"(?:exclud|eliminat|reject|discard|dismiss|rul(?:e|ed|ing)\s+out\b|cross(?:ed)?\s+(?:out|off)\b)",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\s*(?:(?:is|was|must\s+be|should\s+be|would\s+be|seems)\s+(?:(?!hardly|scarcely|barely|part|seeming|initial)\w+ly\s+)?(?:the\s+)?(?:only\s+|most\s+|best\s+)?"
    r"(?P<word>correct|right|true|accurate|best|answer|option|choice)\b(?!\s+(?:of|to|side|hand)\b|-)"
    r"(?P<noun>\s+(?:answer|option|choice|letter|response|one)\b)?"
    r"|(?:选项|選項|项)?\s*是?(?:正确|正確|对的|對的))",
    re.IGNORECASE,
)
# "no" and "yes" after a letter, as in "A: no, B: yes": alone, not as the first word of a text ("no cars").
_ALONE = (
    r"\b(?=\s*(?:[.,;:!)\]}\n。、]|\Z)|\s+[\-\u2013\u2014]|\s+(?:because|since|as|and|but)\b"
    r"|\s+[(\[]?[A-Z][.:)\]])"
)
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_NO = re.compile(rf"[ \t.:;)\-\u2013\u2014]*\bno{_ALONE}", re.IGNORECASE)
_YES = re.compile(rf"[ \t.:;)\-\u2013\u2014]*\byes{_ALONE}", re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?:\A|[.!?;:,。]\s*|\n\s*|\b(?:so|but|thus|hence|therefore|that|think|believe|only)\s*,?\s+)"
    r"(?:(?:the\s+)?(?:options?|choice|answer|letter)\s+)?",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"\bit(?:'s|\s+(?:is|must\s+be|should\s+be|has\s+to\s+be))\s+(?:\w+ly\s+)?"
    r"|\b(?:so|thus|hence|therefore)\b\s*,?\s*",
    re.IGNORECASE,
)
_NEXT_SENTENCE = re.compile(r"[.!?;。]\s+|\n\s*")
_LISTED = re.compile(r"(?<![\w.'])[A-Z](?=[.:)]\s)")
_NOT_THAT = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bthan|\bexcept|\bunlike|\binstead\s+of|\bexclud\w+|\beliminat\w+|\brul\w+\s+out"
    r"|不选|不是|排除|而非)\s*(?:be\s+)?(?:the\s+)?(?:options?\s*|choices?\s*|answers?\s*)?\Z",
    re.IGNORECASE,
)
# What takes back a statement before it: a correction that names another option, or a denial of the whole.
_CORRECTION = re.compile(
    r"\b(?:wait|actually|sorry|however|but|although|hmm|oops|correction|rather|instead|maybe|perhaps|I\s+mean|I\s+meant"
    r"|on\s+second\s+thoughts?|scratch\s+that|no(?=\s*[,.:;!\u2014]|\s+it\b))\b|但|不对|不對|等等|其实|其實|抱歉|然而|不过|不過",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    rf"[.,;!\n)]\s*(?:(?:but|however|and)\b,?\s*)?(?:which|this|that|it)(?:'s|\s+(?:is|was|would\s+be|seems))\s+"
    rf"(?:(?!not\b)\w+\s+)?(?:{_WRONG}|not\s+(?:correct|right|true)\b)(?!\s+(?:to|that)\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|\Z)|[\n。]+")
_CORRECTED_IN = 240  # characters
_CAPITAL = re.compile(
    r"[(\[{<]\s*([A-Za-z])\s*[)\]}>]|(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9\u00c0-\u024f]|['\-&]\w|[+#])"
)
_SHARE = re.compile(r"[\s.:)\]\-\u2013\u2014(]*\d+(?:\.\d+)?\s?%")
# "C. Ronaldo", "A. Lincoln is", "D. C. Smith": a name, unless the word is an option's or begins sentences.
_NO_SENTENCE = (
    r"(?!(?:An?|The|This|That|These|Those|There|Here|He|She|It|They|We|You|His|Her|Its|Their|In|On|At|No|Not|Yes"
    r"|Nobody|Nothing|None|Some|Someone|Everyone|Both|All|One|Two|Three|Only|Since|Because|As|While|Based|Explanation|Reason"
    r"|Option|Answer|Wait|Actually|Sorry|But|However|What|Who|Where|When|How)\b)"
)
_SURNAME = re.compile(
    rf"\. (?:{_NO_SENTENCE}([A-Z][a-z]+)(?=[.!]?\s*\Z|\s+(?:is|was|has|and|[A-Z][a-z])|'s\b)"
    rf"|(?:[A-Z]\. ){{1,3}}{_NO_SENTENCE}([A-Z][a-z]+)\b)"
)
_INITIALS = re.compile(r"(?:[A-Z]\. ){2,}(?=[A-Z][a-z])")
_PROBABLY = re.compile(
    r"(?:(?:most|very)\s+)?(?:probably|likely|definitely|certainly|clearly|surely)\b\s*,?\s*", re.IGNORECASE
)
# What makes another amount of a number: "-2" and "2%" are not "2".
_SIGNS = re.compile(r"[\-~$\u20ac\u00a3<>](?=\d)|(?<=\d)\s?[%\u00b0]")
_SOME_ARTICLES = re.compile(r"\b(?:an|the)\b")  # not "a", which is a letter too


def parse_strict(reply: str, options: Sequence[str] = ()) -> str | None:
    r"""The letter that a reply states beyond doubt, None for any other.

    What follows `</think>` is read. The first of these that states an option decides; if it states two, the reply has
    no letter. Denied letters ("(A) is wrong", "not B", "A: no") are never stated, and a reply that takes back what it
    stated ("The answer is A. Wait, no, it is B") has no letter, unless a rule before finds one. Of a reply of more than
    4,000 characters without marks, the first and the last 2,000 are read.

    1. What is in `<answer>...</answer>` or `\boxed{...}`, read by the rules below. If there is such a mark, nothing
       else is read.
    2. The whole reply: a letter alone, or the text of exactly one option.
    3. What follows "final answer is", "final answer:" and the like.
    4. What follows "answer is", "option:", "I choose", "答案是" and the like; the letter in "B is correct" and in
       "B: yes".
    5. The letter at the beginning of the reply, or after "it is", "so" or "therefore". After a letter at the beginning,
       one that begins a later sentence is stated too, and so are the letters of a list of the options.

    After a phrase, and at the beginning, a letter counts in brackets, quotes or bold, and before a full stop, colon,
    bracket or line end. A bare letter before words counts only if these are its option's text or begin with "because"
    or the like. A letter with another option's text states both, and so does "A is right" if "right" is another
    option's whole text. "D. C. Smith" is a name, not an answer D. Letters beyond the last option are no answer. "no"
    and "yes" after a letter may be an option's text: "no" denies no letter whose option begins with it, and "yes"
    states a letter only if no option begins with either.

    Args:
      options: texts, A's first; without them the letters are A to E and no text is compared.
    """
    said = final_part(reply)
    letters = LETTERS[: len(options) or _UNNAMED]
    if marked := tagged(said):
        texts = dict.fromkeys(marked) if len(marked) <= MOST_TAGS else ()
        stated = {letter for text in texts if (letter := parse_strict(text, options)) is not None}
    else:
        stated = _Reply(plain(shortened(said)), options, letters).stated()
    return next(iter(stated)) if len(stated) == 1 and stated <= set(letters) else None


class _Reply:
    """A reply to a question with options.

    Args:
      text: as `plain` gives it.
      letters: of the options, in order.
    """

    def __init__(self, text: str, options: Sequence[str], letters: str):
        self.text, self.letters = text, letters
        self.keys = {letter: _option_keys(option) for letter, option in zip(letters, options, strict=False)}
        self.signs = {letter: _SIGNS.findall(option) for letter, option in zip(letters, options, strict=False)}
        self.most_ends = max((len(_TEXT_END.findall(option)) for option in options), default=0) + _MORE_ENDS
        self.words = {word for option in options for word in normalise(option).split()}
        self.yes_or_no = {
            letter: match[0].casefold()
            for letter, option in zip(letters, options, strict=False)
            if (match := _YES_OR_NO.match(option))
        }

    def stated(self) -> set[str]:
        rules = (self._whole, lambda: self._after(FINAL_PHRASE), self._answers, self._weakly)
        return next((letters for rule in rules if (letters := rule())), set())

    # --- the rules ---------------------------------------------------------------------------------------------------

    def _whole(self) -> set[str]:
        alone = _LETTER.match(self.text)
        if alone and not self.text[alone.end() :].strip(".:)!,;。 \n"):
            return {_of(alone)}
        return self._named(self.text)

    def _after(self, phrase: re.Pattern[str]) -> set[str]:
        letters: set[str] = set()
        for match in phrase.finditer(self.text):
            if not doubted(self.text, match.start()):
                letters |= self._stated_at(match.end(), comma=True) or self._text_stated_at(match.end())
            if len(letters) > 1:
                break
        return letters

    def _answers(self) -> set[str]:
        letters = self._after(ANSWER_PHRASE)
        for start in _SENTENCE.finditer(self.text):
            letter = _LETTER.match(self.text, start.end())
            if letter and _of(letter) in self.letters and not (letter[2] and self._begins_text(letter)):
                end = self._own_text(_of(letter), letter.end()) or letter.end()
                right = _RIGHT.match(self.text, end)
                yes = right or (not self.yes_or_no and _YES.match(self.text, end))
                if yes and not doubted(self.text, start.end()) and not self._denied(_of(letter), end):
                    stated = {_of(letter)} | (self._verdict_text(right) if right else set())
                    letters |= self._unless_taken_back(stated, yes.end())
            if len(letters) > 1:
                break
        return letters

    def _weakly(self) -> set[str]:
        probably = _PROBABLY.match(self.text)
        letters = self._stated_at(probably.end() if probably else 0)
        if len(letters) == 1:
            start = _LETTER.search(self.text)
            assert start is not None
            after = self._own_text(_of(start), start.end()) or start.end()
            letters |= self._repeated(after)
        for match in _WEAK.finditer(self.text):
            if not doubted(self.text, match.start()):
                letters |= self._stated_at(match.end(), comma=True)
            if len(letters) > 1:
                break
        return letters

    # --- what is stated at a place -----------------------------------------------------------------------------------

    def _stated_at(self, place: int, *, comma: bool = False, sure: bool = False) -> set[str]:
        """The letter at a place, if it is stated there, with those joined to it and those whose text follows it.

        Args:
          comma: whether a comma ends a statement.
          sure: whether a bare letter before another option's text is left out, not taken for both.
        """
        name = _NAME.match(self.text, place)
        letter = _LETTER.match(self.text, name.end() if name else place)
        if letter is None:
            return set()
        if letter[2] and self._begins_text(letter):
            return set()
        symbol, end = _of(letter), letter.end()
        own = self._own_text(symbol, end)
        if self._denied(symbol, own or end) or (not own and self._share_or_name(letter)):
            return set()
        joined = self._joined(end)
        ended = _CLOSED.match(self.text, end) or _BECAUSE.match(self.text, end)
        if not (letter[1] or ended or own or joined or (comma and _COMMA.match(self.text, end))):
            return set() if sure or symbol not in self.letters else self._contradicted(symbol, end)
        stated = {symbol, *joined} | (set() if own else self._contradicted(symbol, end))
        return self._unless_taken_back(stated, own or end)

    def _share_or_name(self, letter: re.Match[str]) -> bool:
        """Whether a letter has a percentage behind it ("A) 10%"), or is a name's first ("C. Ronaldo")."""
        name = _SURNAME.match(self.text, letter.end()) if letter[2] and self.words else None
        return bool(_SHARE.match(self.text, letter.end())) or bool(
            name and normalise(name[1] or name[2]) not in self.words
        )

    def _unless_taken_back(self, stated: set[str], end: int) -> set[str]:
        """What is stated, with "" where the words behind it take it back: no letter is alone then."""
        return stated | {""} if len(stated) == 1 and self._taken_back(stated, end) else stated

    def _taken_back(self, stated: set[str], end: int) -> bool:
        most = min(len(self.text), end + _CORRECTED_IN)
        ends = itertools.islice(_SENTENCE_END.finditer(self.text, end, most), 3)
        sentences = [match.end() for match in ends]
        # The statement's own sentence and the next one.
        last = sentences[1] if len(sentences) > 1 else most
        if _DENIAL.search(self.text, end, last):
            return True
        marker = _CORRECTION.search(self.text, end, last)
        if marker is None:
            return False
        until = sentences[2] if len(sentences) > 2 else most
        for letter in _CAPITAL.finditer(self.text, marker.end(), until):
            before = max(end, letter.start() - _BEFORE)
            if (
                _of(letter) in set(self.letters) - stated
                and not self._denied(_of(letter), letter.end())
                and not _NOT_THAT.search(self.text, before, letter.start())
            ):
                return True
        return bool(self._text_at(_after_marks(self.text, marker.end())) - stated)

    def _denied(self, letter: str, end: int) -> bool:
        """Whether the words at a place deny the letter before it."""
        if _DENIED.match(self.text, end) or _EXCLUDED.match(self.text, end):
            return True
        return self.yes_or_no.get(letter) != "no" and _NO.match(self.text, end) is not None

    def _contradicted(self, letter: str, end: int) -> set[str]:
        """A letter and the option whose text follows it, where that is another one's."""
        texts = self._text_at(_after_marks(self.text, end))
        return {letter} | texts if texts and letter not in texts else set()

    def _joined(self, place: int, most: int = 3) -> set[str]:
        """Letters behind "or", "and" or a comma, as many as are needed to tell that there are several."""
        other = _OTHER.match(self.text, place) if most else None
        name = _NAME.match(self.text, other.end()) if other else None
        letter = _LETTER.match(self.text, (name or other).end()) if other else None  # type: ignore[union-attr]
        if letter is None or _of(letter) not in self.letters or self._denied(_of(letter), letter.end()):
            return set()
        more = self._joined(letter.end(), most - 1)
        ended = any(end.match(self.text, letter.end()) for end in (_CLOSED, _COMMA, _BECAUSE))
        return {_of(letter)} | more if letter[1] or more or ended else set()

    def _repeated(self, place: int) -> set[str]:
        """Letters stated after a place at the beginning of a sentence, or before their own option's text, as in a list
        of the options."""
        letters: set[str] = set()
        for start in itertools.islice(_NEXT_SENTENCE.finditer(self.text, place), _MOST_SENTENCES):
            letters |= self._stated_at(start.end(), sure=True) & {*self.letters, ""}
            if len(letters) > 1:
                return letters
        for match in _LISTED.finditer(self.text, place):
            denied = _NOT_THAT.search(self.text, max(0, match.start() - _BEFORE), match.start())
            if not denied and self._own_text(match[0], match.end()):
                letters |= self._stated_at(match.start(), sure=True) & {*self.letters, ""}
            if len(letters) > 1:
                break
        return letters

    def _verdict_text(self, right: re.Match[str]) -> set[str]:
        """The options whose whole text is the word of a verdict, as "right" in "A is right"; none before a noun."""
        return self._named(right["word"]) if right["word"] and not right["noun"] else set()

    # --- texts of options --------------------------------------------------------------------------------------------

    def _begins_text(self, letter: re.Match[str]) -> bool:
        """Whether a bare letter is the first word of an option's text, as of "a dog": that is neither for certain."""
        ends = [end for end in self._ends(letter.start()) if end > letter.end()]
        return any(self._named(self.text[letter.start() : end]) for end in ends)

    def _own_text(self, letter: str, place: int) -> int | None:
        """Where the letter's own option ends, if its text follows."""
        start = _after_marks(self.text, place)
        ends = (end for end in sorted(self._ends(start), reverse=True) if letter in self._named(self.text[start:end]))
        return next(ends, None)

    def _text_stated_at(self, place: int) -> set[str]:
        return self._unless_taken_back(self._text_at(place), place)

    def _text_at(self, place: int) -> set[str]:
        """The options whose text stands at a place, up to the end of a clause; the longest text counts."""
        first = _LETTER.match(self.text, place)
        if first and first[2] and _of(first) in self.letters:
            initials = _INITIALS.match(self.text, place)  # of a name, not the letter of an option with the other text
            if not initials or self._own_text(_of(first), first.end()):
                return set()
        for end in sorted(self._ends(place), reverse=True):
            if letters := self._named(self.text[place:end]):
                return letters
        return set()

    def _ends(self, place: int) -> list[int]:
        most = place + max((len(key) for keys in self.keys.values() for key in keys), default=0) * 2 + 40
        ends = (match.start() for match in _TEXT_END.finditer(self.text, place))
        near = itertools.takewhile(lambda end: end <= most, ends)
        return list(itertools.islice((end for end in near if end > place), self.most_ends))

    def _named(self, text: str) -> set[str]:
        said = _key(text, _SOME_ARTICLES)
        named = {letter for letter, keys in self.keys.items() if said and said in keys}
        return {letter for letter in named if not said[:1].isdigit() or self.signs[letter] == _SIGNS.findall(text)}


def _of(letter: re.Match[str]) -> str:
    return (letter[1] or letter[2]).upper()


def _after_marks(text: str, place: int) -> int:
    marks = _MARKS.match(text, place)
    assert marks is not None
    return marks.end()


def _option_keys(option: str) -> tuple[str, ...]:
    """An option's text with and without its "a", which replies may leave out."""
    return tuple(filter(None, (_key(option, _SOME_ARTICLES), _key(option))))


def _key(text: str, *dropped: re.Pattern[str]) -> str:
    """The text normalised; if it has nothing but symbols, itself."""
    return normalise(text, *dropped) or " ".join(text.casefold().split())
