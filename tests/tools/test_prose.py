"""The checker of English: what is a sentence, what counts, and what it reports."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.tools import TOOLS, load

prose = load("prose")


def sentences(text: str) -> list[str]:
    """The sentences of a Markdown text."""
    blocks = prose.read_markdown(textwrap.dedent(text))
    return [each for block in blocks if block.is_sentence for _, each in prose.split_sentences(block.text)]


def in_code(source: str) -> list[tuple[int, str]]:
    """Line and text of every sentence of a module."""
    blocks = prose.read_python(textwrap.dedent(source))
    return [
        (block.line_at(offset), each)
        for block in blocks
        if block.is_sentence
        for offset, each in prose.split_sentences(block.text)
    ]


# --- what is a sentence -----------------------------------------------------------------------------


def test_sentences_end_at_full_stops_and_not_at_abbreviations_or_decimals() -> None:
    assert sentences("Use a metric, e.g. chrF. Hu et al. report 0.5 here. Is it so? heredity resumes.") == [
        "Use a metric, e.g. chrF.",
        "Hu et al. report 0.5 here.",
        "Is it so?",
        "heredity resumes.",
    ]


def test_a_quoted_sentence_does_not_end_the_one_around_it() -> None:
    assert sentences('The answer "I cannot." counts as a refusal.') == [
        'The answer "I cannot." counts as a refusal.'
    ]


def test_a_paragraph_goes_over_its_lines_and_ends_at_a_blank_one() -> None:
    assert sentences("One sentence\nover two lines.\n\nAnother without an end\n\n# A title") == [
        "One sentence over two lines.",
        "Another without an end",
        "A title",
    ]


def test_each_list_item_is_a_sentence_of_its_own() -> None:
    assert sentences("Steps:\n\n- pull a model\n  and look at it\n- ask it\n\n1. first\n2. second\n") == [
        "Steps:",
        "pull a model and look at it",
        "ask it",
        "first",
        "second",
    ]


def test_code_is_no_prose() -> None:
    fenced = "Before.\n\n```python\nnot = 'a sentence. At all.'\n```\n\nAfter.\n"
    assert sentences(fenced) == ["Before.", "After."]
    assert sentences("Before:\n\n    heredity ask a b. C d.\n\nAfter.") == ["Before:", "After."]
    assert sentences("Before.\n\n<!-- a. b. -->\n\nAfter.") == ["Before.", "After."]


def test_a_paragraph_within_a_list_item_is_prose_and_code_within_it_is_not() -> None:
    assert sentences("- item\n\n  more of it\n\n      code here\n\nAfter.") == [
        "item",
        "more of it",
        "After.",
    ]


def test_the_text_of_a_note_is_prose() -> None:
    assert sentences("```{note}\nRead this.\n```\n\n:::{tip}\nAnd this.\n:::\n\nEnd.") == [
        "Read this.",
        "And this.",
        "End.",
    ]


def test_inline_code_and_addresses_are_one_word() -> None:
    (sentence,) = sentences(
        "Run `heredity ask a b c --d 1` and see [the page](docs/x.md#y) or https://example.org/a.b.c now."
    )
    assert sentence == "Run CODE and see the page or URL now."
    assert prose.count_words(sentence) == 9 and prose.count_numbers(sentence) == 0


def test_table_rows_are_no_sentences() -> None:
    assert sentences("| a | b |\n|---|---|\n| one. Two | 1 2 3 4 |\n\nText.") == ["Text."]


# --- what counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "n"),
    [
        ("The ranges overlap: 7-39 % vs 25–45 %.", 2),
        ("It lost 7 of 17 (41 %), n 1,024.", 4),
        ("Intervals: +3.5 [-0.1, +7.0].", 3),
        ("Hu et al. 2021 (2106.09685) used Python 3.11 and torch 2.13.0.", 0),
        ("The 4-bit child of Qwen2.5-0.5B is Q4_K_M, see #16 and section 3.", 0),
        ("Peak 90MiB, 16k rows, 2.5x as fast.", 3),
    ],
)
def test_numbers_are_figures_and_not_names(sentence: str, n: int) -> None:
    assert prose.count_numbers(sentence) == n


def test_signs_are_no_words() -> None:
    assert prose.count_words("model × attack - probe / sample is here.") == 6


def findings(
    text: str, path: str = "x.md", words: str = "whoever => anyone who"
) -> list[tuple[int, str, str]]:
    found = prose.check_blocks(path, prose.read_markdown(text), prose.parse_banned(words))
    return [(each.line, each.rule, each.detail) for each in found]


def test_the_limits_themselves_are_allowed() -> None:
    assert findings("word " * 25) == [] and findings("word " * 26) == [(1, "words", "26")]
    assert findings("From 1 to 2.") == [] and findings("From 1 to 2 by 3.") == [(1, "numbers", "3")]


def test_a_page_of_benchmarks_may_have_numbers() -> None:
    assert findings("From 1 to 2 by 3.", "docs/benchmarks.md") == []


def test_a_finding_names_the_line_where_its_sentence_begins() -> None:
    assert [line for line, *_ in findings("Good.\nShort\none. And whoever\nis here.\n\nwhoever")] == [3, 6]


def test_banned_words_are_found_across_lines_whatever_their_case_and_not_within_others() -> None:
    words = "goes on => resumes\nreckon* => estimate\nalone => only"
    assert findings("It Goes\non, it reckons. A stand-alone page; alonesome.", words=words) == [
        (1, "banned", '"Goes on" (write: resumes)'),
        (1, "banned", '"reckons" (write: estimate)'),
    ]


def test_banned_words_count_in_tables_and_not_in_code() -> None:
    assert findings("| whoever | x |\n\n`whoever`\n\n    whoever\n") == [
        (1, "banned", '"whoever" (write: anyone who)')
    ]


def test_a_line_of_the_list_without_a_replacement_is_an_error() -> None:
    with pytest.raises(ValueError, match="whoever"):
        prose.parse_banned("# a comment\nwhoever =>")


def test_the_list_of_the_project_finds_the_examples_of_its_vocabulary() -> None:
    for text in (
        "Validation is told no number.",
        "It goes on where it was.",
        "A setting that there is not.",
        "An adapter of rank 0 is none.",
        "No GPU was at hand.",
        "Attacks are laid over probes.",
        "Answers may depend on their company.",
        "The arrows of all pictures.",
        "Points of a picture.",
        "Padding gets no gradient on the way back.",
        "Raises UsageError where there is none.",
        "The interval; None where it cannot be had.",
        "What is checked is what is kept.",
        "Eight bytes a trial.",
        "Contrastive alone.",
        "It rounds otherwise.",
    ):
        assert list(prose.check_blocks("x.md", prose.read_markdown(text), prose.banned())), text


def test_the_list_of_the_project_leaves_plain_english_alone() -> None:
    for text in (
        "There is no file. ASR stands for attack success rate.",
        "Leave it alone. Otherwise, retry.",
        "The sample is no longer than one batch of a company's proxy.",
        "Raises UsageError if the file is in the folder where it is expected, or see where it fails.",
        "What is a heat pump? The default is None.",
        "Eight bytes per trial, twice a day.",
        "heredity resumes where it stopped and reports the embeddings.",
    ):
        assert not list(prose.check_blocks("x.md", prose.read_markdown(text), prose.banned())), text


def test_long_lines_are_found_unless_they_cannot_be_broken() -> None:
    long = "word " * 24 + "x"
    assert [each.line for each in prose.check_lines("x.md", f"short\n{long}", 120)] == [2]
    assert not list(prose.check_lines("x.md", f"| {long} |", 120))
    assert not list(prose.check_lines("x.md", "see https://example.org/" + "a" * 120, 120))
    assert [each.detail for each in prose.check_lines("x.py", "x" * 111, 110)] == ["111"]
    assert not list(prose.check_lines("x.py", "x" * 110 + "  # noqa: ARG002", 110))
    assert [each.detail for each in prose.check_lines("x.py", "x" * 111 + "  # noqa: ARG002", 110)] == ["111"]


def test_the_newest_section_of_a_changelog_is_all_that_is_read() -> None:
    text = "# Changelog\n\n## 2\n\nNew.\n\n## 1\n\nOld.\n"
    assert prose.newest_section(text) == "# Changelog\n\n## 2\n\nNew.\n\n"
    assert prose.newest_section("# Changelog\n\n## 1\n\nOld.\n").endswith("Old.\n")


# --- code -------------------------------------------------------------------------------------------


def test_docstrings_are_read_with_their_lines() -> None:
    source = '''
    """A module.

    Promises: one thing;
    and another.
    Leaves to others: the rest

        code = "is. not"
        >>> 1 + 1
    """

    def f():
        """Return it.

        >>> f. g
        h. i
        """
    '''
    assert in_code(source) == [
        (2, "A module."),
        (4, "Promises: one thing; and another."),
        (6, "Leaves to others: the rest"),
        (13, "Return it."),
    ]


def test_rows_of_terms_are_sentences_without_the_term() -> None:
    source = '''
    """Settings.

    models         names of models, or
                   values
    out            the folder
    """
    '''
    assert [text for _, text in in_code(source)] == ["Settings.", "names of models, or values", "the folder"]


def test_help_texts_and_texts_of_fields_are_read() -> None:
    source = '''
    import click

    @click.option("--x", help="The first." "  It is long.", metavar="NO. NO.")
    def command(): ...

    class Settings:
        rate: float = setting(0.1, "The learning rate.")
        size: int = 3
        """Documented beneath."""
    '''
    assert sorted(in_code(source)) == [
        (4, "It is long."),
        (4, "The first."),
        (8, "The learning rate."),
        (10, "Documented beneath."),
    ]


def test_sentences_of_a_table_at_the_top_of_a_module_are_read() -> None:
    source = 'VERBS: dict = {"Grow": {"pull": "Bring a model.", "x": "not one", "y": "a.b."}}'
    assert in_code(source) == [(1, "Bring a model.")]


def test_what_an_f_string_inserts_is_one_word() -> None:
    assert in_code('f(help=f"The {a + b:.2f} first")') == [(1, "The CODE first")]


def test_comments_and_messages_are_read_on_request_for_banned_words_alone() -> None:
    source = 'raise E(f"it goes on for {x} and ever")  # whoever reads\n'
    assert not list(prose.read_python(source))
    assert [(block.text, block.is_sentence) for block in prose.read_python(source, is_all=True)] == [
        ("it goes on for CODE and ever", False),
        ("whoever reads", False),
    ]


# --- the command ------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "prose.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_findings_are_printed_and_counted_by_folder(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "x.md"
    page.write_text("Good.\n\nIt goes on.\n")
    ran = run(tmp_path)
    assert ran.returncode == 1
    first, *table = ran.stdout.splitlines()
    assert first == f'{page.as_posix()}:3: banned "goes on" (write: resumes, continues): It goes on.'
    assert table[0].split() == ["words", "numbers", "line", "banned", "total"]
    assert table[1].split() == [page.parent.as_posix(), "0", "0", "0", "1", "1"]
    assert table[-1].split() == ["total", "0", "0", "0", "1", "1"]


@pytest.mark.slow
def test_a_clean_text_exits_with_0(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("All is well.\n")
    assert run(tmp_path / "x.md").returncode == 0


@pytest.mark.slow
def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    ran = run(tmp_path / "none.md")
    assert ran.returncode == 2 and "none.md" in ran.stderr


def test_the_text_of_a_template_is_prose_and_what_it_inserts_is_one_word() -> None:
    template = (
        '<h2 id="x">Rates</h2>\n<p>The {{ name(a, b) }} is <em>worse</em>{% if x %} today{% endif %}.'
        "</p>\n<td>no prose</td>"
    )
    found = list(prose.read_template(template))
    assert [(block.line, block.text.replace(" .", ".")) for block in found] == [
        (1, "Rates"),
        (2, "The CODE is worse today."),
    ]
