import ast
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import heredity
from heredity.core.sanitize import LIMIT, compile_pattern, label, shown, visible
from tests.support.hostile_text import NASTY

SOURCE = Path(heredity.__file__).parent
ANY = st.text(st.characters(), max_size=300)  # surrogates included


def is_hidden(character: str) -> bool:
    return character not in "\n\t\u200c\u200d" and unicodedata.category(character) in {
        "Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp",
    }  # fmt: skip


@given(ANY)
def test_no_hidden_character_is_left_in_any_text(text: str) -> None:
    assert not [c for c in visible(text) if is_hidden(c)]


@given(ANY)
def test_any_text_can_be_written_as_utf_8(text: str) -> None:
    visible(text).encode()


@given(ANY)
def test_making_visible_twice_changes_nothing(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_readable_text_is_left_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_text_is_cut_and_the_cut_is_counted(text: str) -> None:
    cut = shown(text)
    assert cut.n_cut == max(0, len(text) - LIMIT)


def test_an_escape_code_is_shown_and_does_nothing() -> None:
    assert visible("\x1b[31m\x9b\x00") == "␛[31m⟨U+009B⟩␀"


def test_an_override_is_named() -> None:
    assert visible("a\u202eb") == "a⟨U+202E⟩b"


def test_a_lone_surrogate_is_named() -> None:
    assert visible("\ud800") == "⟨U+D800⟩"


def test_hidden_tag_letters_are_named() -> None:
    assert "U+E0041" in visible("\U000e0041")


def test_emoji_and_joined_scripts_stay_whole() -> None:
    for text in ("👩‍🔬", "می‌خواهم", "❤️", "naïve – “quoted” 中文"):
        assert visible(text) == text


@given(ANY, st.integers(2, 60))
def test_a_label_is_one_short_line(text: str, limit: int) -> None:
    line = label(text, limit)
    assert len(line) <= limit
    assert "\n" not in line and "\t" not in line


@pytest.mark.parametrize(
    "pattern",
    [
        "a{1000000}",
        "((a{1000}){1000}){1000}",
        "(?:ab|cd){300000}",  # ended the process by a signal as it was compiled
        "(?:a{1000}[(]){1000}",
        "(?:a{1000}[[:alpha:](]){1000}",
        r"(?:a{1000}[\\[:alpha:](]){1000}",
        "(?x)a{1 0 0 0 0 0 0}",
        "(?x)a{1#c\n000000}",
        "(?x)(?:a{1000} # (\n){1000}",
        "(?V1)(?:a{1000}[[(]a]){1000}",
        "a{" + "9" * 5000 + "}",
        "(" * 2000 + ")" * 2000,
        "a" * 1000,  # its search builds tables in cubic time, for minutes from 9,000 on
    ],
)
def test_a_pattern_that_takes_all_memory_is_not_compiled(pattern: str) -> None:
    with pytest.raises(ValueError):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}",
        r"(([0-9a-fA-F]{1,4}:){7,7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4})",
        r"^[\w\[\](){}]{1,64}$",
        r"(?is)<script\b[^>]{0,200}>(?:.{0,300}?[;{}(=>.!+\n])?\s{0,40}alert",
        r"(?x) a{2} # twice",
    ],
)
def test_a_usual_pattern_is_compiled(pattern: str) -> None:
    assert compile_pattern(pattern).pattern == pattern


def bare_plurals(source: str) -> list[str]:
    """Counts in f-strings before a plural noun that `plural` did not write: they can say `1 answers`."""
    nouns = (
        "answers|trials|comparisons|studies|behaviours|verdicts|children|breaches|labels|prompts|probes|"
        "examples|seeds|twins"
    )
    tree, rows = ast.parse(source), []
    exempt = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.IfExp) and re.search("(> 1|== 1)$", ast.unparse(node.test))
        for each in ast.walk(node)
    }
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) and id(node) not in exempt else []
        for before, value, after in zip([ast.Constant(""), *parts], parts, parts[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            name = ast.unparse(value.value)
            is_count = re.search(r"^(n|n_\w+|len\(.*\)|.*\.n|.*\.n_\w+|n_\w+\(.*\))$", name)
            is_limit = re.search(r"^(len\()?[\w.]*\b_?[A-Z_]{2,}\)?$", name)
            is_share = re.search(r"(\b[Oo]f|\b[Oo]f (the|its)|[Aa]ll|These) $", ast.unparse(before)[1:-1])
            is_noun = re.match(rf" ((?!were )[a-z-]+ )?({nouns})\b", str(after.value))
            if is_count and is_noun and not is_limit and not is_share and "plural(" not in name:
                rows.append(f"{value.lineno}: {name}{after.value[:30]}")
    return rows


def test_no_message_says_1_answers() -> None:
    assert bare_plurals("f'{n} answers'") and bare_plurals("f'the {len(rows):,} shared trials.'")
    assert not bare_plurals("""f"{plural(n, 'answer')}, 3 of {n} answers" """)
    # Words of an estimate's method are stored with it, and compared with those that are computed again.
    stored = ("stats/", "study/intervals.py: rate.n_broke breaches; bounds")
    rows = [
        f"{path.relative_to(SOURCE)}:{row}"
        for path in SOURCE.rglob("*.py")
        for row in bare_plurals(path.read_text("utf-8"))
    ]
    assert not [row for row in rows if not re.sub(r":\d+", "", row).startswith(stored)]
