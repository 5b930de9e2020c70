"""Hold the words of the tiny corpus: twelve topics, names, and three inflection rules.

Only regular words are listed, and no base form ends in "s". A noun or a present-tense verb therefore
shows its number in its last letter, which lets a test check agreement by reading the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Hold base forms of the words that a topic prefers, by part of speech."""

    name: str
    agents: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]
    transitive: tuple[str, ...]
    intransitive: tuple[str, ...]
    adjectives: tuple[str, ...]


def words(text: str) -> tuple[str, ...]:
    """Split a text into words: lists of them read better without quotes."""
    return tuple(text.split())


def _topic(name: str, *lists: str) -> Topic:
    return Topic(name, *map(words, lists))


TOPICS: tuple[Topic, ...] = (
    _topic(
        "sea",
        "sailor captain fisher diver pirate gull seal whale dolphin crab pilot admiral",
        "boat anchor rope sail net barrel lantern sextant chart oar mast shell pearl hook flag buoy",
        "harbour beach island lighthouse pier lagoon reef cove",
        "follow haul pull rescue signal anchor repair load approach board",
        "sail drift float dive paddle wander splash wait",
        "salty stormy calm wet distant blue deep rusty brave wooden tidal foggy",
    ),
    _topic(
        "farm",
        "farmer shepherd dog horse cow goat hen pig rooster lamb donkey miller",
        "tractor plough fence bucket egg pumpkin turnip haystack wagon gate shovel seed apple "
        "barrow saddle trough",
        "barn field orchard stable meadow pasture mill pond",
        "chase herd pull harvest water plant guard gather milk scatter",
        "graze stray bark stumble doze snort rest yawn",
        "muddy ripe fertile hungry stubborn woolly dry golden sleepy plump dusty rural",
    ),
    _topic(
        "kitchen",
        "cook baker waiter chef guest butcher taster brewer grocer dishwasher steward host",
        "pan kettle spoon onion carrot pie cake oven plate jar lemon recipe noodle pepper bowl napkin",
        "kitchen bakery pantry cellar tavern counter restaurant canteen",
        "taste bake roast pour slice peel serve season boil melt",
        "simmer cook dine smile bubble hurry sneeze linger",
        "sweet sour spicy warm crispy fresh bitter greasy tender hot creamy bland",
    ),
    _topic(
        "stars",
        "astronomer physicist astronaut observer engineer scholar pilot engraver dreamer watcher "
        "stargazer professor",
        "telescope planet comet star moon rocket satellite galaxy "
        "meteor orbit mirror antenna sensor crater probe nebula",
        "observatory dome station tower desert laboratory summit platform",
        "observe measure record predict photograph discover launch track approach calculate",
        "sparkle orbit glow vanish rotate explode flicker fade",
        "bright distant faint cold massive round silent ancient red dense luminous unknown",
    ),
    _topic(
        "forest",
        "hunter ranger woodcutter fox deerhound bear owl squirrel badger raven beaver hermit",
        "tree branch acorn mushroom nest feather trail axe log berry leaflet root stump campfire "
        "arrow trap",
        "forest clearing cave valley cabin thicket swamp grove",
        "watch hunt avoid trail sniff bury startle collect attack track",
        "howl prowl rustle climb roam crawl listen scurry",
        "wild green dark hollow mossy shy tall shady tangled quiet cunning thick",
    ),
    _topic(
        "clinic",
        "doctor surgeon patient visitor dentist pharmacist therapist porter chemist orderly infant "
        "pensioner",
        "bandage pill syringe thermometer bed scanner ointment needle "
        "report vaccine stretcher monitor mask tablet bruise wound",
        "clinic ward pharmacy corridor theatre reception surgery hospital",
        "examine treat heal question consult bandage cure welcome visit weigh",
        "cough recover faint breathe limp complain improve tremble",
        "sick healthy pale sterile urgent painful careful weak gentle feverish chronic nervy",
    ),
    _topic(
        "market",
        "merchant trader banker customer beggar swindler tailor clerk vendor broker jeweller auctioneer",
        "coin basket carpet ribbon ring purse silk lamp ledger spice scale receipt necklace cart "
        "blanket candle",
        "market bank stall square bazaar shop warehouse alley",
        "order sample count trade value cheat pack deliver invoice purchase",
        "haggle shout argue profit gamble queue bargain whisper",
        "cheap costly rare shiny greedy honest foreign crowded rich poor silver noisy",
    ),
    _topic(
        "workshop",
        "carpenter blacksmith mechanic welder apprentice inventor potter mason plumber electrician "
        "supervisor robot",
        "hammer nail chisel saw bolt engine gear lever wire pulley ladder drill plank hinge screw valve",
        "workshop forge garage factory shed yard foundry attic",
        "hammer repair assemble polish weld sharpen tighten fasten paint lift",
        "labour rattle vibrate spark creak whistle rust squeak",
        "sharp heavy broken metal loose oily sturdy smooth blunt electric crooked hollow",
    ),
    _topic(
        "school",
        "teacher pupil student tutor principal janitor librarian coach scholar writer poet classmate",
        "book pencil desk lesson map essay puzzle blackboard notebook poem ruler exam question "
        "answer library satchel",
        "school classroom playground hall gym office courtyard dormitory",
        "encourage correct explain question praise copy study remember answer borrow",
        "learn laugh chatter graduate fidget doodle whisper daydream",
        "clever curious lazy difficult easy polite young strict famous careless patient simple",
    ),
    _topic(
        "music",
        "singer drummer pianist violinist conductor dancer composer listener fiddler trumpeter "
        "critic actor",
        "violin drum flute song piano guitar trumpet melody curtain bell harp concert ticket "
        "costume microphone score",
        "stage theatre studio ballroom chapel balcony opera cellar",
        "play admire tune compose perform rehearse applaud conduct imitate interrupt",
        "dance sway rehearse bow linger echo tremble improvise",
        "loud soft slow quick graceful famous solemn cheerful hoarse modern tragic rhythmic",
    ),
    _topic(
        "railway",
        "conductor passenger driver porter traveller inspector guard stoker dispatcher tourist "
        "commuter messenger",
        "train ticket suitcase wagon timetable bridge signal whistle "
        "engine parcel platform carriage clock bench tunnel lever",
        "station tunnel depot junction border village terminal crossing",
        "board follow greet carry delay inspect stamp unload check escort",
        "arrive depart travel wait rumble snore accelerate halt",
        "late early crowded empty long northern southern fast tired punctual smoky narrow",
    ),
    _topic(
        "mountain",
        "climber guide goat eagle monk hiker skier miner explorer marmot shepherd geologist",
        "peak rock glacier boot tent rope pickaxe cliff avalanche backpack torch crystal boulder "
        "snowball helmet flag",
        "summit valley ridge monastery camp gorge plateau refuge",
        "climb scout reach warn measure photograph scale mark survey descend",
        "climb hike shiver camp tumble stagger pant echo",
        "steep icy snowy high rocky frozen dangerous lonely narrow windy thin rugged",
    ),
)

SHE = words(
    "Anna Clara Edith Freya Greta Hannah Ingrid Julia Laura Maria Nina Olivia Petra Rosa Sofia Vera "
    "Wilma Zoe Emma Martha Bella Dora Ellen Fiona Irene Judith Karen Lucy Mabel Nora"
)
HE = words(
    "Albert Bruno David Erik Felix Gustav Henry Ivan Jacob Karl Leo Martin Oscar Peter Robert Simon "
    "Tobias Victor Walter Adam Boris Conrad Daniel Edgar Frank Gerald Hugo Ralph Stefan Thomas"
)
SURNAMES = words(
    "Adler Baker Carter Dalton Ellery Fisher Grant Harlow Ivory Jensen Keller Lambert Mercer Norton "
    "Osborn Porter Quinn Ramsey Sutton Tanner Underhill Vance Walden York Zeller Bishop Crane Drake "
    "Fielding Hobart"
)
MONTHS = words("January February March April May June July August September October November December")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = words("red blue green yellow white black brown grey purple orange")
FEELINGS = words("happy sad angry proud afraid surprised bored worried grateful jealous")
NUMBER_WORDS = words("zero one two three four five six seven eight nine ten eleven twelve")


def third_person(word: str) -> str:
    """Return the plural of a noun or the third person singular of a verb: regularly one and the same."""
    if word.endswith(("ch", "sh", "x", "z")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def past(verb: str) -> str:
    """Return the past tense of a regular verb whose last consonant is not doubled."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def article(word: str) -> str:
    """Return the indefinite article in front of `word`."""
    return "an" if word[0].lower() in "aeiou" else "a"
