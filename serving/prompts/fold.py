"""Texts as they read, not as they are written: equal to the eye, equal to us.

Compatibility forms (NFKD), case, marks above and below letters, characters without width, and letters of other scripts
that look Latin. What is ambiguous (is `1` an i or an l?) is left to `serving.prompts.rules`, which tries both.
"""

from __future__ import annotations

import re
import unicodedata

# What looks like a Latin letter in lower case, written below it; capitals come here case-folded. After the idea of
# Unicode's UTS 39, by our own eyes: only what a reader takes for the letter in a word, none that needs good will.
_LOOKALIKES = {
    "a": "аαɑᴀ⍺",
    "b": "Ььвβʙƅ",
    "c": "сᴄƈ",
    "d": "ԁɗᴅԀꓒđð",
    "e": "еєεҽᴇɛə℮",
    "f": "ғƒꜰ",
    "g": "ɡցɢǥᶃ",
    "h": "һհнʜħ",
    "i": "іιıɪɩ",
    "j": "јʝᴊϳ",
    "k": "кκᴋƙҝ",
    "l": "ʟłӏǀ",
    "m": "мᴍɱ",
    "n": "пηոɴŋ",
    "o": "оοσօᴏøөօ०০",
    "p": "рρᴘƥþ",
    "q": "ԛզɋ",
    "r": "гʀɾᴦ",
    "s": "ѕꜱʂƽ",
    "t": "тτᴛŧƭ",
    "u": "υսᴜцμʋ",
    "v": "νѵᴠѷ",
    "w": "шωԝᴡѡ",
    "x": "хχ×ҳ",
    "y": "уүγʏɏ",
    "z": "ᴢʐƶʒ",
}
_LIGATURES = {"æ": "ae", "œ": "oe", "ß": "ss", "ƕ": "hv"}
_SQUARED = {
    chr(base + k): chr(ord("a") + k) for base in (0x1F150, 0x1F170, 0x1F1E6) for k in range(26)
}  # white on black, in circles and squares; and the letters of flags
_TABLE = str.maketrans(
    {look: letter for letter, looks in _LOOKALIKES.items() for look in looks} | _LIGATURES | _SQUARED
)
_UNSEEN = {"Mn", "Me", "Mc", "Cf", "Cs", "Co", "Cn"}
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")  # letters by category, blank to the eye
_SPELT_OUT = re.compile(r"(?<!\S)\S(?: \S)+(?!\S)")


def fold(text: str) -> str:
    """The text in lower case and, where it has a Latin look, in ASCII; folding it again changes nothing.

    Characters that are not seen vanish, white space of every kind becomes a space, and nothing else moves.
    """
    while (once := _fold_once(text)) != text:
        text = once
    return text


def _fold_once(text: str) -> str:
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    seen = (_shown(character) for character in text)
    return "".join(seen).translate(_TABLE)


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in _UNSEEN or category == "Cc" or character in _BLANK_LETTERS:
        return ""
    return character


def readings(text: str) -> list[str]:
    """What a folded text may say: as it stands, and with words that are spelt out, a space after each letter, joined.

    Words in a row that are all spelt out run together unless more than one space parts them, since nobody can tell; but
    an "a" or "i" in front is also taken for a word of its own.
    """
    found = [text]
    for word in (_whole, _after_an_article):
        joined = _SPELT_OUT.sub(word, text)
        if joined not in found:
            found.append(joined)
    return found


def _whole(spelt: re.Match[str]) -> str:
    return spelt.group().replace(" ", "")


def _after_an_article(spelt: re.Match[str]) -> str:
    letters = spelt.group()
    return letters[:2] + letters[2:].replace(" ", "") if letters[0] in "ai" and len(letters) > 3 else _whole(spelt)
