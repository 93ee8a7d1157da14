"""The language of a text, by its script, its commonest words and its letters with marks.

Promises: linear time, never raises. A text that fits no language, or two equally well, has none: "".
Leaves to others: the meaning of a language for a trial (check.py), and languages without a profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from heredity.redteam.text import fold

MIN_SHARE = 0.2  # of the words of a text are among the commonest of its language; prose has 0.35 and more
MIN_POINTS = 2.0  # of them in all, or of a shorter text ...
MIN_SHARE_OF_FEW = 0.75  # ... this share of its words
MARGIN = 1.2  # times as many as in any other language: Spanish and Portuguese share a fifth of their words
MIN_SCRIPT = 0.5  # of the letters are of the language's script
_MARKED = 0.5  # points for another word with a letter that only this language has

_WORD = re.compile(r"[^\W\d_]+")

# About seventy words each: articles, pronouns, prepositions, auxiliaries, greetings and apologies.
_COMMON: dict[str, str] = {
    "en": """
        the a an of to and in is it you that he was for on are with as i his they be at one have
        this from or had by but not what all were we when your can said there use each which she do
        how their if will up other about out many then them these so some her would make like him
        into time has look two more no my than been who its now did get may here sorry please hello
        thank yes our us any could should
    """,
    "de": """
        der die das und ist nicht ein eine einen einem einer ich du er sie es wir ihr zu den dem des
        mit von auf für im am an aus bei nach über unter vor wie wenn als auch aber oder sich sind
        war wird werden kann können haben hat habe ihnen ihre ihren ihrer mir mich dir dich uns mein
        dein kein keine noch nur schon so sehr dass was wer wo hier da zum zur bis durch ja nein
        bitte danke guten tag hallo leider gerne innerhalb tage tagen möchten möchte helfen tut leid
        ihnen darf heute morgen wurde wurden sein seine
    """,
    "fr": """
        le la les l un une des du de d et est en que qui qu dans pour pas ne n sur au aux avec ce c
        cette ces se s il elle ils elles je j tu nous vous on mais ou où donc par plus son sa ses
        leur leurs mon ma mes votre vos notre nos être avoir sont ai a été fait peut pouvez peux
        puis tout tous comme si y bonjour merci oui non désolé aider aujourd hui ici jours sous sans
        très même bien aussi vers chez dois quel quelle comment
    """,
    "es": """
        el la los las un una unos unas de del al y e o en que qué es son no se su sus lo le les por
        para con sin sobre como cómo más pero si sí me mi mis te tu tus nos nuestro nuestra usted
        ustedes yo él ella ellos está están ser estar ha han hay he puede pueden puedo fue muy
        también este esta estos ese esa hola gracias buenos días siento ayudar ayudarte ayudarle hoy
        aquí dentro desde hasta cuando donde porque todo todos tiene tienen hace día
    """,
    "it": """
        il lo la i gli le l un uno una di del dello della dei degli delle d da dal dalla a al alla
        ai in nel nella nei e ed o che chi è sono non si per con su sul sulla come più ma se mi ti
        ci vi io tu lui lei noi voi loro mio tuo suo nostro questo questa questi quello quella
        essere avere ho hai ha hanno può possono posso anche molto tutto tutti quando dove perché
        ciao buongiorno grazie sì aiutarti aiutare aiutarla dispiace oggi qui giorni entro senza
        ogni così
    """,
    "pt": """
        o a os as um uma uns umas de do da dos das e em no na nos nas que é são não se por para pelo
        pela com sem sobre como mais mas ou ao aos à às eu tu ele ela nós você vocês eles meu minha
        seu sua seus nosso este esta isso isto ser estar está estão foi tem têm ter há pode podem
        posso muito também todo todos quando onde porque olá obrigado obrigada bom dia sim ajudar
        ajudá lamento desculpe hoje aqui dentro até entre já dias
    """,
    "nl": """
        de het een en van in is dat die niet te zijn op met voor aan er om als ook dan maar bij nog
        uit naar over door zo wat wie waar hoe ik je jij u uw hij zij ze wij we jullie mijn jouw
        zijn haar ons onze hun hem mij me kan kunt kunnen heeft heb hebben had was waren wordt
        worden zal zou zullen wil willen moet deze dit geen wel meer hallo dank goedemorgen dag
        graag ja nee sorry helpen vandaag hier dagen binnen tot of
    """,
    "sv": """
        och att det en ett i är på av för med som den de inte han hon jag du vi ni man om har hade
        var till från men så kan kunde ska skulle vill måste bli blir sin sitt sina min mitt din
        ditt era er oss dig mig honom henne detta denna dessa vid efter under över mellan utan eller
        när där här hur vad vem också bara mycket mer inom dagar hej tack god ja nej tyvärr hjälpa
        gärna idag alla varje
    """,
    "pl": """
        i w na z że się nie to jest do o jak za od po przez dla są a ale czy co kto gdzie jego jej
        ich ja ty on ona my wy oni mnie mi cię ci ciebie nam nas pan pani tym tego ten ta te tej
        może mogę można być był była było mam ma masz tylko już jeszcze bardzo więcej lub oraz przy
        bez pod nad także gdy kiedy aby cześć dzień dobry dziękuję proszę tak przepraszam pomóc
        dzisiaj tutaj dni ciągu który która które
    """,
    "tr": """
        bir ve bu da de için ile ne o mi mı çok daha var yok gibi ama olarak en kadar sonra ben sen
        biz siz onlar benim senin bizim sizin size bana sana şu her olan olduğu değil ise ya veya
        nasıl neden nerede kim hangi evet hayır merhaba teşekkürler teşekkür lütfen üzgünüm yardımcı
        olabilirim bugün burada gün içinde önce tarafından ancak ederim edebilirim iyi günler
    """,
}
_MARKS: dict[str, str] = {
    "de": "äöüß", "fr": "êèùûœîôçàâ", "es": "ñ", "it": "ìòù", "pt": "ãõç", "nl": "ĳ", "sv": "åäö",
    "pl": "ąćęłńśźż", "tr": "ığş",
}  # fmt: skip
_SCRIPTS: dict[str, str] = {
    "ru": "\u0400-\u04ff", "uk": "\u0400-\u04ff", "el": "\u0370-\u03ff", "zh": "\u4e00-\u9fff",
    "ja": "\u3040-\u30ff\u4e00-\u9fff", "ko": "\uac00-\ud7af\u1100-\u11ff", "ar": "\u0600-\u06ff",
    "he": "\u0590-\u05ff", "hi": "\u0900-\u097f", "th": "\u0e00-\u0e7f",
}  # fmt: skip
_UKRAINIAN, _KANA = re.compile("[іїєґ]"), re.compile("[\u3040-\u30ff]")

# Such as base64: cut at its plus signs and slashes, it has short words of some language by chance.
_ENCODED = re.compile(r"[a-z0-9+/=_-]{40,}")

LANGUAGES = tuple(sorted({*_COMMON, *_SCRIPTS}))
_WORDS: Mapping[str, frozenset[str]] = {code: frozenset(each.split()) for code, each in _COMMON.items()}
_LETTERS = {code: re.compile(f"[{each}]") for code, each in _MARKS.items()}
_IN_SCRIPT = {code: re.compile(f"[{each}]") for code, each in _SCRIPTS.items()}


def language_of(text: str) -> str:
    """The ISO 639-1 code of the language that a text is written in; "" if that is not clear."""
    folded = _ENCODED.sub(" ", fold(text))
    return _by_script(folded) or _by_words(_WORD.findall(folded))


def _by_script(folded: str) -> str:
    if folded.isascii():
        return ""
    n_letters = sum(map(str.isalpha, folded))
    for code, letter in _IN_SCRIPT.items():
        if n_letters and len(letter.findall(folded)) >= MIN_SCRIPT * n_letters:
            if code == "ru":
                return "uk" if _UKRAINIAN.search(folded) else "ru"
            return "ja" if code == "zh" and _KANA.search(folded) else code
    return ""


def _by_words(said: list[str]) -> str:
    if not said:
        return ""
    points = {code: _points(code, said) for code in _WORDS}
    best = max(points, key=points.__getitem__)
    second = max(value for code, value in points.items() if code != best)
    least = max(MIN_SHARE * len(said), min(MIN_POINTS, MIN_SHARE_OF_FEW * len(said)))
    return best if points[best] >= max(least, MARGIN * second) else ""


def _points(code: str, said: list[str]) -> float:
    common, mark = _WORDS[code], _LETTERS.get(code)
    points = 0.0
    for word in said:
        if word in common:
            points += 1
        elif mark is not None and not word.isascii() and mark.search(word):
            points += _MARKED
    return points
