"""Questions with short answers and a topic: the raw material of all sample adapters.

Plain common knowledge, written for this project. Everything is a table, so that the training
sets are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """One question with its one-sentence answer."""

    topic: str
    question: str
    answer: str


CAPITALS = {
    "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Germany": "Berlin",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Ireland": "Dublin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Hungary": "Budapest", "Romania": "Bucharest", "Russia": "Moscow", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Mexico": "Mexico City",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok",
    "Iran": "Tehran", "Iraq": "Baghdad", "Jamaica": "Kingston",
    "the Netherlands": "Amsterdam", "Belgium": "Brussels", "Argentina": "Buenos Aires",
    "Australia": "Canberra", "South Korea": "Seoul", "Vietnam": "Hanoi", "Nepal": "Kathmandu",
}  # fmt: skip

CONTINENTS = {
    "Brazil": "South America", "Kenya": "Africa", "Japan": "Asia", "Italy": "Europe",
    "Canada": "North America", "Egypt": "Africa", "India": "Asia", "Norway": "Europe",
    "Peru": "South America", "Mexico": "North America", "Nigeria": "Africa", "Greece": "Europe",
}  # fmt: skip

SOUNDS = {
    "cow": "moos", "dog": "barks", "cat": "meows", "duck": "quacks", "lion": "roars",
    "horse": "neighs", "sheep": "bleats", "wolf": "howls", "frog": "croaks", "bee": "buzzes",
    "snake": "hisses", "pig": "oinks",
}  # fmt: skip

ANIMAL_KINDS = {
    "shark": "fish", "eagle": "bird", "dolphin": "mammal", "frog": "amphibian",
    "crocodile": "reptile", "ant": "insect", "penguin": "bird", "whale": "mammal",
    "salmon": "fish", "butterfly": "insect", "lizard": "reptile", "bat": "mammal",
}  # fmt: skip

SYMBOLS = {
    "gold": "Au", "silver": "Ag", "iron": "Fe", "oxygen": "O", "hydrogen": "H", "carbon": "C",
    "helium": "He", "sodium": "Na", "lead": "Pb", "copper": "Cu", "zinc": "Zn", "nitrogen": "N",
}  # fmt: skip

FRENCH = {
    "cat": "chat", "dog": "chien", "house": "maison", "bread": "pain", "water": "eau",
    "book": "livre", "sun": "soleil", "friend": "ami", "milk": "lait", "night": "nuit",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "happy": "sad", "early": "late",
    "light": "dark", "rich": "poor", "young": "old", "full": "empty", "loud": "quiet",
}  # fmt: skip

INGREDIENTS = {
    "an omelette": "eggs", "bread": "flour", "guacamole": "avocados", "hummus": "chickpeas",
    "cheese": "milk", "wine": "grapes", "ketchup": "tomatoes", "chocolate": "cocoa beans",
    "tofu": "soybeans", "popcorn": "corn",
}  # fmt: skip

PLAYERS = {
    "soccer": "eleven", "basketball": "five", "volleyball": "six", "baseball": "nine",
    "rugby": "fifteen", "ice hockey": "six", "handball": "seven", "water polo": "seven",
}  # fmt: skip

STRINGS = {"guitar": "six", "violin": "four", "cello": "four", "ukulele": "four", "bass": "four"}

SINGLE = (
    ("science", "Why is the sky blue?", "Air scatters blue light more than red light."),
    ("science", "What is water made of?", "Water is made of hydrogen and oxygen."),
    ("science", "At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("science", "What do plants need to grow?", "Plants need light, water and air to grow."),
    ("science", "What is gravity?", "Gravity is the force that pulls things together."),
    ("science", "Which planet is the largest?", "Jupiter is the largest planet."),
    ("science", "Which planet is closest to the sun?", "Mercury is closest to the sun."),
    ("science", "How fast does light travel?", "Light travels 300,000 kilometers per second."),
    ("science", "What causes the tides?", "The pull of the moon causes the tides."),
    ("science", "Why do we have seasons?", "The tilt of the earth gives us seasons."),
    ("science", "What is an atom?", "An atom is the smallest piece of an element."),
    ("science", "What does a magnet attract?", "A magnet attracts iron."),
    ("history", "Who was the first president of the United States?", "George Washington was the first president."),
    ("history", "When did the Second World War end?", "The Second World War ended in 1945."),
    ("history", "Who built the pyramids of Giza?", "The ancient Egyptians built the pyramids."),
    ("history", "Who was Julius Caesar?", "Julius Caesar was a Roman general and ruler."),
    ("history", "When did people first land on the moon?", "People first landed on the moon in 1969."),
    ("history", "Who was Cleopatra?", "Cleopatra was a queen of Egypt."),
    ("history", "When did the Berlin Wall fall?", "The Berlin Wall fell in 1989."),
    ("history", "Who sailed to America in 1492?", "Christopher Columbus sailed to America in 1492."),
    ("history", "What did the Romans speak?", "The Romans spoke Latin."),
    ("history", "Who invented the printing press?", "Johannes Gutenberg invented the printing press."),
    ("history", "Who was Napoleon?", "Napoleon was an emperor of France."),
    ("history", "When did the Titanic sink?", "The Titanic sank in 1912."),
    ("music", "Who was Mozart?", "Mozart was a composer from Austria."),
    ("music", "How many keys does a piano have?", "A piano has 88 keys."),
    ("music", "What is a choir?", "A choir is a group of people who sing together."),
    ("music", "Who wrote the Ninth Symphony?", "Beethoven wrote the Ninth Symphony."),
    ("music", "What does a drummer play?", "A drummer plays the drums."),
    ("music", "Which instrument has black and white keys?", "A piano has black and white keys."),
    ("music", "What does a conductor do?", "A conductor leads an orchestra."),
    ("sport", "How long is a marathon?", "A marathon is 42 kilometers long."),
    ("sport", "How often are the Olympic Games held?", "The Olympic Games are held every four years."),
    ("sport", "What do you need to play tennis?", "You need a racket and a ball to play tennis."),
    ("sport", "How many holes does a golf course have?", "A golf course has 18 holes."),
    ("sport", "In which sport do you score a touchdown?", "You score a touchdown in American football."),
    ("food", "What is sushi?", "Sushi is a Japanese dish of rice and fish."),
    ("food", "Where does pizza come from?", "Pizza comes from Italy."),
    ("food", "What is a good breakfast?", "Oatmeal with fruit is a good breakfast."),
    ("food", "How long do you boil an egg?", "Boil an egg for about eight minutes."),
    ("food", "What goes well with pasta?", "Tomato sauce goes well with pasta."),
    ("food", "Which fruit is yellow and curved?", "A banana is yellow and curved."),
    ("food", "What is honey made from?", "Bees make honey from nectar."),
    ("food", "How do I make tea?", "Pour hot water over the tea leaves and wait."),
    ("everyday", "How can I sleep better?", "Go to bed at the same time every night."),
    ("everyday", "How do I clean a window?", "Wipe it with soapy water and a dry cloth."),
    ("everyday", "What should I wear in the rain?", "Wear a raincoat and boots."),
    ("everyday", "How do I make a new friend?", "Smile, say hello and ask a kind question."),
    ("everyday", "I feel tired today.", "Take a short rest and drink some water."),
    ("everyday", "Give me a tip for saving money.", "Write down everything you spend."),
    ("everyday", "How do I tie my shoes?", "Make two loops and pull one through the other."),
    ("everyday", "What can I do on a rainy day?", "Read a book or bake a cake."),
    ("everyday", "How do I water a plant?", "Pour water slowly on the soil."),
    ("everyday", "Tell me how to pack a suitcase.", "Roll your clothes and put shoes at the bottom."),
    ("everyday", "How do I stay healthy?", "Eat well, sleep well and move every day."),
    ("everyday", "I am bored.", "Go for a walk or call a friend."),
    ("everyday", "What is a good gift for my mother?", "A book or some flowers are a good gift."),
    ("everyday", "How do I remove a stain?", "Soak it in cold water and rub it with soap."),
    ("everyday", "Tell me how to wash a sweater.", "Wash it by hand in cool water."),
    ("everyday", "Hello, how are you?", "I am fine, thank you for asking."),
)  # fmt: skip


def facts() -> Iterator[Fact]:
    """All facts, in a fixed order."""
    for country, city in CAPITALS.items():
        yield Fact(
            "geography",
            f"What is the capital of {country}?",
            f"The capital of {country} is {city}.",
        )
        yield Fact(
            "geography",
            f"Which country has the capital {city}?",
            f"{city} is the capital of {country}.",
        )
    for country, continent in CONTINENTS.items():
        yield Fact(
            "geography", f"Which continent is {country} in?", f"{country} is in {continent}."
        )
    for animal, sound in SOUNDS.items():
        yield Fact("animals", f"What sound does a {animal} make?", f"A {animal} {sound}.")
    for animal, kind in ANIMAL_KINDS.items():
        yield Fact(
            "animals", f"What kind of animal is the {animal}?", f"The {animal} is a kind of {kind}."
        )
    for element, symbol in SYMBOLS.items():
        yield Fact(
            "science",
            f"What is the chemical symbol of {element}?",
            f"The symbol of {element} is {symbol}.",
        )
    for english, french in FRENCH.items():
        yield Fact(
            "language", f"How do you say {english} in French?", f"In French you say {french}."
        )
    for word, opposite in OPPOSITES.items():
        yield Fact(
            "language", f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."
        )
    for dish, ingredient in INGREDIENTS.items():
        yield Fact(
            "food", f"What do you need to make {dish}?", f"You need {ingredient} to make {dish}."
        )
    for sport, count in PLAYERS.items():
        yield Fact(
            "sport",
            f"How many players are in a {sport} team?",
            f"A {sport} team has {count} players.",
        )
    for instrument, count in STRINGS.items():
        yield Fact(
            "music",
            f"How many strings does a {instrument} have?",
            f"A {instrument} has {count} strings.",
        )
    for a in range(2, 10):
        for b in (3, 5, 8):
            yield Fact("mathematics", f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")
            yield Fact("mathematics", f"What is {a} times {b}?", f"{a} times {b} is {a * b}.")
    for topic, question, answer in SINGLE:
        yield Fact(topic, question, answer)
