"""Arguments to try a function with, by what kind of thing each parameter is."""

from __future__ import annotations

import ast
from collections.abc import Callable
from random import Random
from typing import Any

_WORDS = (
    *("apple", "river", "Stone", "cloud", "level", "garden", "Anna", "bridge", "noon", "paper", "winter", "green"),
    *("kayak", "tree"),
)
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog",
    "a man  walks into the small Garden",
    "Call 555 now or ask for 2 rooms",
    "noon in Paris at level 10",
    "Never odd or even",
    "what you see is what you get",
    "",
)
_TEXTS = (
    *_SENTENCES,
    "Hello, World!",
    "aaabccd",
    "price: 30 euros, tax: 7",
    "x1_value",
    "Tab\tand  spaces",
    'He said "no"; she left',
    "back\\slash",
    "key=value; other=2",
)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "int": (-12, -3, 0, 1, 2, 3, 4, 5, 7, 8, 10, 12, 15, 21, 28, 30, 36, 49, 64, 97, 100, 121),
    "positive": (1, 2, 3, 4, 6, 7, 9, 11, 12, 16, 18, 21, 23, 28, 37, 44, 60, 97, 112, 496),
    "year": (1600, 1789, 1900, 1999, 2000, 2001, 2023, 2024, 2100),
    "mode": (0o100644, 0o40755, 0o120777, 0o100755, 0o10600, 0o20666),
    "height": (1.55, 1.6, 1.75, 1.82, 1.9),
    "weight": (48.5, 60.0, 71.5, 83.0, 95.0),
    "bool": (False, True),
    "str": _TEXTS,
    "sentence": _SENTENCES,
    "word": (*_WORDS, "listen", "silent", "tinsel", "aabbc", "winner", "greet", "papers", "level"),
    "letters": ("a", "e", "an", "ee", "o", "in", "th", " ", "\t"),
    "identifier": ("__init__", "_name_", "value", "_hidden", "__x", "____", "__dict__", "_a_"),
    "roman": ("III", "IV", "IX", "XIV", "XL", "LXXXIX", "XCIX", "CDXLIV", "MCMXCIV", "MMXXV"),
    "digits": ("79927398713", "4539", "18", "0", "59", "123456", "49927398716", "91"),
    "camel": ("maxValue", "getUserName", "Parser", "line", "toJSON", "numHeads"),
    "snake": ("max_value", "get_user_name", "line", "num_heads", "to_upper_case"),
    "brackets": ("()", "([])", "(()", "{[()]}[]", "([)]", "", "((({})))", "]", "()[]{", "[[]()]"),
    "path": (
        *("/usr/lib/python/site.py", "docs/read me.txt", "archive.tar.gz", "/etc/../var//log/", "a/b/c", "", "/", "."),
        *("C:\\Users\\ann\\notes.txt", "C:/data/x", "\\\\host\\share\\file", ".profile", "data[1].csv", "~/x.md"),
    ),
    "pattern": ("*.py", "data[0-9].csv", "?.md", "*", "a*", "[!a]*", "*/*"),
    "address": (
        *("http://www.example.org:8080/a/b?x=1&y=2#top", "//user:secret@host.example.com/path", "example.org"),
        *("/path/to/page;v=1;w=2", "https://example.com#end", "<URL:ftp://x>", "mailto:ann@example.org", "x?y?z"),
    ),
    "query": ("x=1&y=2&x=3", "name=Ann+Lee&age=", "a", "q=caf%C3%A9", "", "key=a=b"),
    "encoded": ("a%20b+c%2Fd", "caf%C3%A9", "100%", "%41%42%zz", "plain+text", "x%3D1%26y%3D2"),
    "login": ("ann:secret@host", "bob@example.org", "ann:pass:word", "host", "a@b@c", "ann:"),
    "host": ("www.example.org", "example.org", ".example.org", "localhost", "10.0.0.1", "host:80", "a.b.local", "x:y"),
    "assignments": (["a=1", 'b="two"'], ["realm=x"], ["q=x=y", "n=0"], []),
    "header": ("Connection", "Content-Type", "upgrade", "Host", "te", "Transfer-Encoding"),
    "mail": ("Ann Lee <ann@example.org>", "bob@example.com", '"B. Ray" <b@example.org>', "<c@example.com>", "", "name"),
    "pair": (("Ann Lee", "ann@example.org"), ("", "bob@example.com"), ("Ray, B.", "b@example.org"), ('Al "X"', "x@y")),
    "date": ("Mon, 20 Nov 1995 19:12:08 -0500", "3 Mar 2021 07:00:00", "Tue, 1 Feb 2000 23:59 GMT", "soon"),
    "extended": ("utf-8'en'a%20b", "us-ascii'en'text", "plain", "latin-1''caf%E9", "one'two"),
    "quoted": ("=41", "=20", "=3D", "=7e", "=C3"),
    "quoted_text": ("a=20b_c", "=48i", "no_change=", "x=3Dy", "plain"),
    "accented": ("café", "naïve plan", "plain", "1 € = 100 ¢", 'say "no"', "tab\t"),
    "markup": ("<b>R&D</b>", "a < b & c > d", "&lt;p&gt; &amp; &quot;x&quot;", "Tom &#38; Ann", "plain", "'q' \"r\""),
    "encoding": ("UTF-8", "latin_1", "ISO-8859-1", "utf8", "cp 1252", "Iso_8859_15", "us--ascii"),
    "indented": (
        "  one\n    two\n  three",
        "\tx\n\ty\n",
        "none\n  some",
        "    a\n\n    b\n",
        "Title\n\n  Text of it.\n  More.",
    ),
    "lines": ("one\ntwo\n", "a\r\nb\rc", "x\fy\nz", "\n\nlast", "single", ""),
    "line": ("\n", "  #   \n", "hello\n", "# note\n", "   \n", "x # y\n"),
    "version": ("1.2.3.4", "10.15", "5.4.0-rc1", "2024", "3.11.7"),
    "bytes": (b"abc", b"Hello, World!", b"\x00\xff\x10", b"", b"12", b"a=b c", b"~/x?", b"caf\xe9"),
    "octet": (b"7", b"x", b"F", b"=", b"a", b"_", b" ", b"\t", b"\xe9"),
    "hexadecimal": (b"4F", b"00", b"FF10", b"3C", b"A7", b"61626364"),
    "base64": ("YWJj", "SGVsbG8=", "AP8Q", "", "fi94Pw==", "MTI="),
    "base64_bytes": (b"YWJj", b"SGVsbG8=\n", b"AP8Q", b"", b"MTI="),
}
_FEW, _MANY = (0, 1, 2, 3), (-30, -12, -7, -4, -1, 5, 6, 8, 9, 10, 11, 14, 15, 20, 33, 50)
_DRAWS: dict[str, Callable[[Random], Any]] = {
    "count": lambda draw: draw.randint(0, 8),
    "wanted": lambda draw: draw.randint(0, 8),
    "size": lambda draw: draw.randint(1, 7),
    "width": lambda draw: draw.randint(8, 30),
    "amount": lambda draw: draw.randint(0, 190),
    "seconds": lambda draw: draw.randint(0, 20_000),
    "month": lambda draw: draw.randint(1, 12),
    "day": lambda draw: draw.randint(1, 28),
    "base": lambda draw: draw.randint(2, 16),
    "score": lambda draw: draw.randint(35, 100),
    "byte": lambda draw: draw.randint(0, 255),
    "start": lambda draw: f"{draw.randint(0, 11):02d}:{draw.randint(0, 59):02d}",
    "end": lambda draw: f"{draw.randint(12, 23):02d}:{draw.randint(0, 59):02d}",
    "bits": lambda draw: "".join(draw.choice("01") for _ in range(draw.randint(1, 8))),
    "runs": lambda draw: "".join(f"{draw.choice('abcxyz')}{draw.randint(1, 5)}" for _ in range(draw.randint(1, 4))),
    "paths": lambda draw: draw.sample(_CHOICES["path"], draw.randint(1, 3)),
    "mails": lambda draw: draw.sample(_CHOICES["mail"][:4], draw.randint(1, 2)),
    "list[int]": lambda draw: [draw.choice(_FEW if draw.random() < 0.5 else _MANY) for _ in range(draw.randint(0, 8))],
    "ordered": lambda draw: sorted(draw.sample(range(20), draw.randint(2, 8))),
    "ranges": lambda draw: [
        [start, start + draw.randint(1, 6)] for start in draw.sample(range(20), draw.randint(1, 4))
    ],
    "list[float]": lambda draw: [draw.choice((0.5, 1.5, 2.25, 4.0, 7.75)) for _ in range(draw.randint(2, 6))],
    "list[str]": lambda draw: draw.sample(_WORDS, draw.randint(1, 5)),
    "list[list[int]]": lambda draw: _matrix(draw, draw.randint(1, 3), draw.randint(1, 3)),
    "square": lambda draw: _matrix(draw, *[draw.randint(1, 3)] * 2),
    "dict[str, int]": lambda draw: {word: draw.randint(0, 9) for word in draw.sample(_WORDS[:6], draw.randint(1, 4))},
}
_NAMES = {
    "other": ("positive", "word"),
    "limit": ("positive",),
    "shift": ("count",),
    "chosen": ("count",),
    "level": ("count",),
    "step": ("size",),
}
"""Kinds of parameters that are not called like their kind."""


def kinds_of(node: ast.FunctionDef) -> tuple[str, ...]:
    """What a function takes, by the names of its parameters, or by their types where these say nothing more."""
    return tuple(
        _kind(parameter.arg.removeprefix("other_"), ast.unparse(parameter.annotation or ast.Constant(None)))
        for parameter in node.args.args
    )


def draw_arguments(kinds: tuple[str, ...], draw: Random) -> str:
    """Arguments of these kinds as source text, as they stand between the brackets of a call."""
    return ", ".join(repr(_value(kind, draw)) for kind in kinds)


def _kind(name: str, annotation: str) -> str:
    for kind in (name, *_NAMES.get(name, ())):
        if kind in _CHOICES or kind in _DRAWS:
            type_name = type(_value(kind, Random(0))).__name__
            if type_name == annotation.partition("[")[0]:
                return kind
    return annotation


def _value(kind: str, draw: Random) -> Any:
    return draw.choice(_CHOICES[kind]) if kind in _CHOICES else _DRAWS[kind](draw)


def _matrix(draw: Random, rows: int, columns: int) -> list[list[int]]:
    return [[draw.randint(-5, 9) for _ in range(columns)] for _ in range(rows)]
