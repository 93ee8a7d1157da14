"""A reply of a few words in a language that was ordered: "Tres huevos.", "Ouverture : 9 h."

So few words do not tell ten languages apart. Here the language is given: the reply has words of it, and none
of English or of the conversation.

Promises: bounded time, never raises.
Leaves to others: longer replies (profiles.py), and quotations (check.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from heredity.redteam.checks.language.profiles import (
    NAME,
    WORD,
    WORDS,
    has_only_own_letters,
    is_shaped_like,
    without_contractions,
)
from heredity.redteam.text import fold, words

MOST_WORDS = 12
MIN_SHARE = 0.3  # of the words that are not names

# Words of short answers: places, times, materials, colours, food, papers, states.
_MORE: dict[str, str] = {
    "de": """
        öffnung öffnungszeit öffnungszeiten schließung einlass eintritt beginn ende ankunft abfahrt
        vormittags nachmittags abends morgens mittags täglich werktags feiertags wochen monate
        minuten sekunden morgen früh spät stahl holz leder wolle baumwolle glas stein kunststoff
        papier rot blau grün gelb schwarz weiß grau braun ei eier mehl zucker milch brot käse wasser
        apfel äpfel birne zwiebeln kuchen suppe links rechts oben unten vorne hinten keller garten
        küche zimmer tür haus straße platz bahnhof flughafen hafen schlüssel rechnung quittung
        lieferung bestellung rückgabe umtausch garantie versand kostenlos vorhanden verfügbar
        ausverkauft unbekannt keiner keines niemand jemand erwachsene kinder personen frau herr
        mutter vater bruder schwester freund herbst frühling winter sommer kleine kleiner große
        großer lang kurz breit hoch tief kalt heiß rund etwa ungefähr circa zwanzig dreißig vierzig
        fünfzig hundert tausend elf zwölf halb laut leise leicht schwer nur ab bis pro je
    """,
    "fr": """
        ouverture fermeture entrée sortie début fin arrivée départ matin après-midi soir nuit chaque
        minutes secondes mois saison tôt tard acier bois cuir laine coton verre pierre plastique
        papier rouge bleu bleue vert verte jaune noir noire blanc blanche gris brun oeuf oeufs œuf
        œufs farine sucre lait pain fromage eau pomme pommes poire oignons gâteau soupe gauche
        droite haut bas devant derrière cave jardin cuisine chambre porte maison rue gare aéroport
        clé clef facture reçu livraison commande retour échange garantie gratuit gratuite disponible
        épuisé inconnu aucun aucune personne adultes enfants personnes madame monsieur mère père
        frère soeur sœur ami automne printemps été hiver petite petites longue court courte large
        profond froid froide chaud chaude environ vingt trente quarante cinquante cent cents mille
        onze douze treize quatorze quinze seize demi demie réponse seulement dès jusqu partir
    """,
    "es": """
        apertura cierre entrada salida inicio fin llegada tarde noche mañanas tardes noches diario
        minutos segundos meses temporada temprano acero madera cuero lana algodón vidrio piedra
        plástico papel rojo roja azul verde amarillo negro negra blanco blanca gris marrón huevo
        huevos harina azúcar leche pan queso agua manzana manzanas pera cebollas pastel sopa
        izquierda derecha arriba abajo delante detrás sótano jardín cocina habitación puerta casa
        calle estación aeropuerto llave factura recibo entrega pedido devolución cambio garantía
        envío gratis disponible agotado desconocido ninguno ninguna adultos niños personas señora
        señor madre padre hermano hermana amigo otoño primavera verano invierno pequeño pequeña
        grande largo corto ancho alto profundo frío caliente unos veinte treinta cuarenta cincuenta
        cien mil once doce trece catorce quince media respuesta partir
    """,
    "it": """
        apertura chiusura ingresso uscita inizio fine arrivo partenza mattina mattino pomeriggio
        sera notte giornaliero minuti secondi mesi stagione presto tardi acciaio legno pelle lana
        cotone vetro pietra plastica carta rosso rossa blu azzurro verde giallo nero nera bianco
        bianca grigio marrone uovo uova farina zucchero latte pane formaggio acqua mela mele pera
        cipolle torta zuppa sinistra destra sopra sotto davanti dietro cantina giardino cucina
        camera porta casa via stazione aeroporto chiave fattura ricevuta consegna ordine reso cambio
        garanzia spedizione gratis gratuito gratuita disponibile esaurito sconosciuto nessuno
        nessuna adulti bambini persone signora signore madre padre fratello sorella amico autunno
        primavera estate inverno piccola lungo corto largo alto profondo freddo caldo circa venti
        trenta quaranta cinquanta cento mille undici dodici tredici quattordici quindici mezza
        mezzo risposta
    """,
    "pt": """
        abertura fechamento entrada saída início fim chegada manhã tarde noite diário minutos
        segundos meses aço madeira couro lã algodão vidro pedra papel vermelho azul verde amarelo
        preto branco cinza ovo ovos farinha açúcar leite pão queijo água maçã bolo sopa esquerda
        direita chave fatura recibo entrega pedido grátis disponível adultos crianças pessoas
        outono primavera verão inverno vinte trinta cem mil resposta
    """,
    "nl": """
        opening sluiting ingang uitgang begin einde aankomst vertrek ochtend middag avond dagelijks
        minuten maanden staal hout leer wol katoen glas papier rood blauw groen geel zwart wit grijs
        ei eieren meel suiker melk brood kaas water appel taart soep links rechts boven beneden
        sleutel rekening levering bestelling gratis beschikbaar uitverkocht volwassenen kinderen
        personen herfst lente zomer winter twintig dertig honderd duizend elf twaalf antwoord
    """,
    "sv": """
        öppning stängning ingång utgång början slut ankomst avgång morgon eftermiddag kväll
        dagligen minuter månader stål trä läder ull bomull papper röd blå grön gul svart vit grå ägg
        mjöl socker mjölk bröd ost vatten äpple kaka soppa vänster höger nyckel räkning leverans
        beställning gratis slutsåld vuxna barn personer höst vår sommar vinter tjugo trettio hundra
        tusen elva tolv svar
    """,
    "pl": """
        otwarcie zamknięcie wejście wyjście początek koniec przyjazd odjazd rano wieczorem codziennie
        minut minuty miesiące stal drewno skóra wełna bawełna szkło papier czerwony niebieski
        zielony żółty czarny biały jajko jajka jajek mąka cukier mleko chleb ser woda jabłko ciasto
        zupa lewo prawo klucz faktura dostawa zamówienie bezpłatnie dorośli dzieci osób jesień
        wiosna lato zima dwadzieścia trzydzieści sto tysiąc odpowiedź
    """,
    "tr": """
        açılış kapanış giriş çıkış başlangıç bitiş varış kalkış sabah öğleden akşam gece günlük
        dakika saniye ay çelik ahşap deri yün pamuk cam kağıt kırmızı mavi yeşil sarı siyah beyaz
        yumurta un şeker süt ekmek peynir su elma kek çorba sol sağ anahtar fatura teslimat sipariş
        ücretsiz yetişkin çocuk kişi sonbahar ilkbahar yaz kış yirmi otuz yüz bin cevap
    """,
}
_ENGLISH = WORDS["en"] | frozenset(
    words(
        """
        two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred
        thousand half morning afternoon evening night minutes months winter summer autumn spring left
        right north south east west steel wood wool cotton leather glass paper red blue green yellow
        black white grey eggs bread water free none nobody street house room key order tent boots
        """
    )
)
# They are English words, too, or stand in names and loans; they show no language.
_SHARED = frozenset(
    words(
        """
        a am an are art as at bad bald bin but can car cent chair chat come comment dame dent die do
        dove due else en euro euros fare fast fin fine gang gave gift gratis gut hat hay her here hers
        hotel hours i in is it kind lit long main male man mark mate me men met mi ma midi mine more
        most no nu o of on once opening or ore ours pain pan per piano pie plan plus pour real red rose
        sale sea see sin sol sole solo son sue ten tag taxi the tire tot un van via war was water we wit
        winter with begin end old one over other under want week were will zoo elf papier personal adult
        august september november april region option orange table menu ser su sol bin ay sto lato zero
        zip large court mars fond mode note net use tour mit ter till man license alto ben blanc cave
        camera carta casa cents con costa dan dank das dir door encore est fait garten grand grande haut
        hui mas matin media mil mille min minutes mot papel par para pas pastel pelle petit petite platz
        presto prima quale que rouge serve sept si six size som tem todo tre torta segundo salut nova
        ella elle links rot god barn har var med hen sig kim kan tio kin vers adults parte dame meter
        signal format patio plaza siesta fiesta pronto allegro forte bravo latte grazie gracias merci
        ciao danke hola adios bonjour saldo todos quanto verso café résumé décor naïve cliché façade
        fiancé fiancée crème brûlée entrée à piñata jalapeño über déjà señor señora gin bar bis ami sur ale
        """
    )
)
# They stand in names: "La Maison des Bottes", "El Paso".
_IN_NAMES = frozenset(
    words(
        "el la los las le les l de du des del della dei di da do das dos san santa saint von van der den die "
        "het il lo gli al y e et und na um em os as o são"
    )
)
_ALL: Mapping[str, frozenset[str]] = {
    code: frozenset(w for w in WORDS[code] | {*_MORE[code].split()} if len(w) > 2 or not w.isascii())
    - _SHARED
    - WORDS["en"]
    for code in _MORE
}


def is_short_reply_in(code: str, text: str, ours: Set[str]) -> bool:
    """Whether a text of few words is in the language, not in English and not in our words.

    `ours` are the words of the conversation, folded. An order to speak the language was given.
    """
    if code not in _ALL:
        return False
    text = without_contractions(text)
    said = WORD.findall(fold(text))
    capitals = frozenset(fold(word) for word in WORD.findall(text) if word[0].isupper())
    if not 0 < len(said) <= MOST_WORDS or not _ENGLISH.isdisjoint({*said} - _SHARED - _ALL[code]):
        return False
    names = frozenset() if code == "de" else frozenset(WORD.findall(fold(" ".join(NAME.findall(text)))))
    rest = [word for word in said if word not in names]
    points = _points(code, rest, capitals)
    n_ours = sum(word in ours and word not in _ALL[code] and word not in _SHARED for word in rest)
    if points <= n_ours or points < MIN_SHARE * len(rest):
        return False
    return all(_points(other, rest, capitals) <= points for other in _ALL if other != code)


def _points(code: str, said: list[str], capitals: frozenset[str]) -> float:
    """Words of the language, and half a point for one that only looks like it, at most one for each word.

    Words of no list that have capitals may all be names: "Émile Zola.", "Zürich."
    """
    own = [word for word in said if word in _ALL[code] or _is_marked(code, word)]
    shaped = [word for word in said if word not in own and is_shaped_like(code, word)]
    names = _IN_NAMES if not capitals.issuperset(shaped) else _IN_NAMES | (capitals - _ALL[code])
    if names.issuperset(own):
        return 0.0
    return len(own) + 0.5 * min(len(shaped), len(own))


def _is_marked(code: str, word: str) -> bool:
    """Whether a word has letters with marks, and only the language's own."""
    return not word.isascii() and word not in _SHARED and has_only_own_letters(code, word)
