"""Words that tasks are made of."""

NAMES = (
    "Ada", "Amir", "Ana", "Anton", "Bela", "Boris", "Carla", "Chen", "Clara", "Daniel", "Diego", "Dora",
    "Elena", "Emil", "Eva", "Farid", "Felix", "Greta", "Hana", "Hugo", "Ines", "Ivan", "Jana", "Jonas",
    "Julia", "Karim", "Kofi", "Laura", "Leo", "Lina", "Lucas", "Maria", "Marta", "Milo", "Mina", "Nadia",
    "Nina", "Noah", "Olga", "Omar", "Paul", "Petra", "Quinn", "Rania", "Rosa", "Ruth", "Samir", "Sara",
    "Sofia", "Tara", "Theo", "Tom", "Uma", "Vera", "Viktor", "Wanda", "Yara", "Yusuf", "Zoe",
)  # fmt: skip
CITIES = (
    "Athens", "Berlin", "Boston", "Cairo", "Chicago", "Dallas", "Delhi", "Denver", "Dublin", "Geneva",
    "Hanoi", "Helsinki", "Istanbul", "Lagos", "Lima", "Lisbon", "London", "Madrid", "Miami", "Milan",
    "Montreal", "Mumbai", "Munich", "Nairobi", "Oslo", "Paris", "Prague", "Rome", "Seattle", "Seoul",
    "Sydney", "Tokyo", "Toronto", "Vienna", "Warsaw", "Zurich",
)  # fmt: skip
JOBS = (
    "architect", "baker", "carpenter", "chef", "dentist", "doctor", "driver", "editor", "engineer",
    "farmer", "gardener", "judge", "lawyer", "librarian", "mechanic", "nurse", "painter", "pilot",
    "plumber", "teacher", "translator", "writer",
)  # fmt: skip
COLORS = (
    "black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "white", "yellow",
)  # fmt: skip
ANIMALS = (
    "bear", "camel", "cat", "cow", "deer", "dog", "duck", "eagle", "elephant", "fox", "frog", "goat",
    "horse", "lion", "monkey", "mouse", "owl", "panda", "pig", "rabbit", "shark", "sheep", "snake",
    "tiger", "turtle", "whale", "wolf", "zebra",
)  # fmt: skip
FRUITS = (
    "apple", "apricot", "banana", "cherry", "date", "fig", "grape", "guava", "kiwi", "lemon", "lime",
    "mango", "melon", "olive", "orange", "papaya", "peach", "pear", "pineapple", "plum", "strawberry",
    "watermelon",
)  # fmt: skip
TOOLS = (
    "axe", "brush", "chisel", "drill", "file", "hammer", "knife", "ladder", "level", "nail", "pliers",
    "rope", "ruler", "saw", "scissors", "screwdriver", "shovel", "tape", "wrench",
)  # fmt: skip
GOODS = (
    "backpacks", "blankets", "books", "bottles", "bowls", "boxes", "candles", "chairs", "clocks", "cups",
    "desks", "folders", "gloves", "hats", "jackets", "keyboards", "lamps", "markers", "mirrors",
    "notebooks", "pencils", "phones", "pillows", "plates", "radios", "scarves", "shirts", "shoes",
    "socks", "tables", "tents", "towels", "umbrellas", "watches",
)  # fmt: skip
PLACES = (
    "airport", "bakery", "beach", "bridge", "castle", "farm", "forest", "garden", "harbor", "hospital",
    "hotel", "island", "kitchen", "lake", "library", "market", "museum", "office", "park", "river",
    "school", "station", "street", "theater", "tower", "valley", "village",
)  # fmt: skip
THINGS = (
    "bag", "ball", "basket", "bell", "bike", "boat", "book", "bottle", "box", "car", "chair", "clock",
    "coat", "cup", "door", "gate", "hat", "key", "lamp", "letter", "map", "mirror", "paper", "phone",
    "picture", "plate", "ring", "shoe", "table", "ticket", "toy", "train", "wheel", "window",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
