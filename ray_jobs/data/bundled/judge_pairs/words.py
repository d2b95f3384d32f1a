"""Words that judged tasks are made of; others than those of the bundled pairs and prompts."""

from ray_jobs.data.bundled.draws import Draws

NOUNS = (
    "anchor", "apron", "arrow", "attic", "badge", "barrel", "beacon", "bench", "blade", "bonnet", "border",
    "branch", "brick", "bucket", "button", "cabin", "canal", "canvas", "carpet", "cellar", "chapel",
    "circle", "cliff", "cloud", "collar", "column", "copper", "cotton", "cradle", "crayon", "cricket",
    "crown", "curtain", "cushion", "dagger", "desert", "drawer", "dune", "engine", "fabric", "feather",
    "fence", "fiddle", "flag", "flame", "flute", "fossil", "fountain", "frame", "glacier", "grain",
    "gravel", "guitar", "hall", "handle", "helmet", "hinge", "hollow", "honey", "hood", "horizon", "iron",
    "jar", "jewel", "jungle", "kettle", "kite", "ladle", "lantern", "lawn", "leaf", "ledge", "lever",
    "locker", "magnet", "marble", "meadow", "medal", "mill", "mint", "mirage", "mortar", "moss", "needle",
    "nest", "oar", "orchard", "organ", "oven", "paddle", "palace", "parcel", "pasture", "pebble", "pepper",
    "petal", "pillar", "pipe", "pocket", "pond", "pulley", "puzzle", "quarry", "quilt", "rail", "raft",
    "ribbon", "ridge", "rocket", "roof", "root", "saddle", "sail", "salt", "satchel", "shelf", "shell",
    "signal", "silver", "sleeve", "smoke", "spade", "spark", "sponge", "spring", "stable", "statue", "steam",
    "stone", "straw", "string", "sugar", "summit", "tank", "thread", "throne", "timber", "torch", "trail",
    "tray", "trench", "trumpet", "tunnel", "vase", "vault", "velvet", "vessel", "violin", "wagon", "wax",
    "well", "whistle", "willow", "wing", "wool", "yard",
)  # fmt: skip
ADJECTIVES = (
    "amber", "ancient", "bitter", "bold", "brave", "bright", "broken", "calm", "clever", "coarse", "cold",
    "crooked", "curious", "damp", "deep", "distant", "dusty", "eager", "early", "empty", "faint", "fast",
    "fierce", "flat", "fragile", "fresh", "gentle", "giant", "golden", "grand", "hidden", "humble", "icy",
    "lazy", "light", "little", "lonely", "loud", "lucky", "mighty", "modern", "narrow", "noble", "odd",
    "pale", "patient", "plain", "polite", "proud", "quick", "quiet", "rare", "rapid", "rough", "rusty",
    "sharp", "silent", "simple", "slow", "smooth", "solid", "stormy", "strange", "strong", "sturdy", "sweet",
    "swift", "tall", "tender", "thick", "thin", "tiny", "vast", "warm", "wild", "wise", "young",
)  # fmt: skip
VERBS = (
    "breaks", "brings", "builds", "carries", "catches", "covers", "crosses", "draws", "drops", "fills",
    "finds", "fixes", "follows", "guards", "hides", "holds", "keeps", "leaves", "lifts", "loses", "meets",
    "moves", "needs", "opens", "passes", "pulls", "pushes", "reaches", "saves", "sells", "shows", "takes",
    "touches", "turns", "visits", "wants", "washes",
)  # fmt: skip
SURNAMES = (
    "Adler", "Bishop", "Brandt", "Castro", "Dalton", "Dunn", "Eriksen", "Fischer", "Foster", "Garcia",
    "Grant", "Hansen", "Holt", "Ivanov", "Jensen", "Keller", "Kovacs", "Larsen", "Lopez", "Mason", "Meyer",
    "Moreau", "Nakamura", "Novak", "Okafor", "Olsen", "Parker", "Patel", "Quist", "Ramos", "Reyes", "Rossi",
    "Santos", "Schmidt", "Singh", "Tanaka", "Torres", "Vance", "Varga", "Walsh", "Weber", "Yilmaz",
)  # fmt: skip
_STARTS = (
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "v",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ee", "ou")
_ENDS = ("", "", "l", "m", "n", "r", "s", "t", "x")
_CODE = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


def made_up(draws: Draws) -> str:
    """A word that means nothing."""
    number = draws.integer(2, 3)
    return "".join(draws.pick(_STARTS) + draws.pick(_MIDDLES) for _ in range(number)) + draws.pick(_ENDS)


def word(draws: Draws) -> str:
    kind = draws.integer(0, 9)
    if kind < 2:
        return made_up(draws)
    return draws.pick(NOUNS if kind < 8 else ADJECTIVES)


def words(draws: Draws, number: int) -> list[str]:
    """Different words."""
    found: dict[str, None] = {}
    while len(found) < number:
        found.setdefault(word(draws))
    return list(found)


def code(draws: Draws) -> str:
    """Letters and digits as on a ticket."""
    text = "".join(draws.pick(_CODE) for _ in range(draws.integer(4, 9)))
    at = draws.integer(2, len(text) - 2)
    return f"{text[:at]}-{text[at:]}" if draws.chance(0.5) else text


def sentence(draws: Draws) -> str:
    a, b = words(draws, 2)
    form = draws.pick(
        (
            "the {c} {a} {v} the {b}",
            "every {a} {v} a {c} {b}",
            "{n} {v} the {a} near the {b}",
            "our {a} {v} the {c} {b} today",
            "{n} says the {b} is {c}",
            "a {c} {a} {v} {n}",
        )
    )
    text = form.format(a=a, b=b, c=draws.pick(ADJECTIVES), v=draws.pick(VERBS), n=draws.pick(SURNAMES))
    return text[0].upper() + text[1:]
