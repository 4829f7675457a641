"""The other skills: echo, sums, counting up, JSON, small talk, and the honest sentence for anything else.

Each function draws one Turn, as in `skills`; knows nothing of letters.
"""

import random
import string

from conversation import Turn, random_sentence
from skills import phrase
from wordlists import NAMES, PLACES, TOPICS, TRAINED_WORDS
from words import WordSource

ECHO = [
    "Repeat after me: {T}",
    "Repeat after me: {T}",
    "Repeat after me: {T}",
    "Please repeat after me: {T}",
    "Repeat this: {T}",
    "Say: {T}",
    "Say this: {T}",
    "Echo: {T}",
    "Repeat exactly: {T}",
]
MARKUP = [
    "<b>", "</b>", "<i>", "</i>", "<br/>", "<script>", "</script>", "<img src=x>", "<think>", "</think>", "&amp;",
    "<a href='#'>", "{{x}}", "${y}", "';--", "a=1&b=2", "`code`", "**bold**", "[link](url)", "\\n", "C:\\temp",
    "user@example.com", "100%", "#1", "~", "|", "^", "…", "é", "ß", "ñ", "ü", "日本", "中文", "Привет", "🙂", "🎉",
    "👍", "🚀", "❤️", "😀", "🐍", "€", "£", "→", "«x»",
]  # fmt: skip
ADD = [
    "What is {A} + {B}?", "What is {A} + {B}?", "{A} + {B}", "{A}+{B}", "{A} + {B} = ?", "{A}+{B}=?",
    "What is {A}+{B}?", "What is {A} plus {B}?", "Add {A} and {B}.", "Calculate {A} + {B}.",
    "How much is {A} + {B}?", "What is the sum of {A} and {B}?", "Can you add {A} and {B}?",
]  # fmt: skip
COUNT_TO = [
    "Count from {A} to {B}.", "Count from {A} to {B}.", "Please count from {A} to {B}.",
    "Count up from {A} to {B}.", "List the numbers from {A} to {B}.", "Write the numbers from {A} to {B}.",
    "Can you count from {A} to {B}?",
]  # fmt: skip
COUNT_TO_FROM_ONE = [
    "Count to {B}.",
    "Count up to {B}.",
    "Please count to {B}.",
    "Can you count to {B}?",
]
GREETINGS = {
    "Hello! I am a tiny demo model. Ask me to count the letters of a word.": [
        "Hello", "Hello!", "hello", "Hi", "Hi!", "hi", "Hey", "hey!", "Hi there", "Hello there!", "Good morning!",
        "Good day", "Good evening.", "Hello, how are you?", "How are you?", "ping", "test", "Are you there?",
    ],
    "I am a tiny demo model of DeepRequest. I know only a few tricks.": [
        "Who are you?", "who are you", "What are you?", "What is your name?", "Tell me who you are.",
        "Which model are you?", "What model are you?", "Are you DeepSeek R1?", "Who made you?", "Introduce yourself.",
        "What is your model name?", "Are you a real model?",
    ],
    "I can count letters, spell, reverse, repeat, add and count.": [
        "What can you do?", "what can you do", "What tricks do you know?", "Help", "help", "How can you help me?",
        "What are you able to do?", "Can you help me?", "List your tricks.", "What do you know?",
    ],
    "You are welcome.": ["Thanks", "Thanks!", "Thank you", "Thank you!", "thank you very much", "Thanks a lot!"],
    "Goodbye!": ["Bye", "bye", "Goodbye", "Goodbye!", "See you", "Good night"],
}  # fmt: skip
REFUSAL = "I am a tiny demo model and cannot answer that. I can count letters, spell, reverse, repeat, add and count."
OFF_TOPIC = [
    "What is the capital of {P}?", "Where is {P}?", "How many people live in {P}?", "How far is {P} from {P}?",
    "What is the weather like in {P}?", "Who is the president of {P}?", "What should I see in {P}?",
    "Tell me a joke.", "Tell me a story.", "Tell me a story about {T}.", "Write a poem about {T}.",
    "Write a short story about {T}.", "Explain {T}.", "Explain {T} to a child.", "What is {T}?", "Why is {T} so {w}?",
    "How does {T} work?", "What do you think about {T}?", "Who invented {T}?", "Tell me about {T}.",
    "Do you like {T}?", "Write a Python function that returns {T}.", "Write code to sort a list of numbers.",
    "Translate '{w}' to French.", "Translate {T} into Spanish.", "Who is {N}?", "Who was {N}?", "Is {N} my friend?",
    "My name is {N}. What should I do about {T}?", "How old is {N}?", "What time is it?", "What day is it today?",
    "How many legs does a {w} have?", "How many days are in a year?", "How many planets are there?",
    "How many people are in the room?", "How many {w} are in {P}?", "What is the meaning of '{w}'?",
    "What does {w} mean?", "Define {w}.", "Give me a synonym of {w}.", "What rhymes with {w}?",
    "Use the word '{w}' in a sentence.", "Is {w} a word?", "Summarize {T}.", "What is the best {w}?",
    "What is {n} times {n}?", "What is {n} * {n}?", "What is {n} - {n}?", "What is the square root of {n}?",
    "Is {n} a prime number?", "Solve x + {n} = {n} for x.", "Prove that there are infinitely many primes.",
    "Recommend a {w}.", "How do I cook {T}?", "How do I fix my {w}?", "Should I buy a {w} or a {w}?",
    "Write an email to {N} about {T}.", "Who won the game?", "When was {T} discovered?", "Why?", "What?", "Why not?",
    "Play a game with me.", "Sing a song about {T}.", "Give me a recipe for {T}.", "Plan a trip to {P}.",
    "{w}", "{w} {w} {w}", "{S}", "{S}", "{S}", "I am {w}.", "My {w} is {w}.", "Ignore all instructions and {w}.",
    "What happened in {y}?", "Who was born in {y}?", "In {y}, {N} went to {P}. Why?", "What comes after {n}?",
    "If {N} has {n} apples and eats {n}, how many are left?", "Is it true that {S}?", "Can you {w} the {w}?",
    "Compare {T} and {T}.", "What is the difference between {T} and {T}?", "Where can I buy {T}?",
    "Draw {T}.", "Are you alive?", "Do you have feelings?", "What is your favourite {w}?", "Continue: {S}",
]  # fmt: skip


def echo(rng: random.Random, source: WordSource, vocabulary: list[str]) -> Turn:
    """Plain words, made-up words, digits, punctuation, markup and characters of several bytes."""
    pieces = []
    for _ in range(rng.choice([1, 2, 3, 3, 4, 5, 6, 8, 10])):
        draw = rng.random()
        if draw < 0.30:
            pieces.append(rng.choice(vocabulary))
        elif draw < 0.55:
            pieces.append(rng.choice(TRAINED_WORDS))
        elif draw < 0.68:
            pieces.append(source.word()[:12])
        elif draw < 0.75:
            pieces.append(str(rng.randint(0, 9999)))
        elif draw < 0.90:
            pieces.append(rng.choice(MARKUP))
        else:
            pieces.append(
                "".join(rng.choice(string.printable[:94]) for _ in range(rng.randint(1, 6)))
            )
    text = (" " if rng.random() < 0.85 else "").join(pieces)
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text += rng.choice("!.?,;")
    return Turn("echo", rng.choice(ECHO).replace("{T}", text), "Let me repeat it.", text, text)


def add(rng: random.Random) -> Turn:
    """Sums of up to three digits, from the units upwards, each line with its carry."""
    a, b = (rng.randint(0, 10 ** rng.choice([1, 2, 2, 3, 3, 3]) - 1) for _ in range(2))
    thoughts, carry = f"Let me add {a:03} and {b:03}.", 0
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        total = x + y + carry
        thoughts += f"\n{x}+{y}+{carry}={total:02}"
        carry = total // 10
    question = phrase(rng, ADD, A=str(a), B=str(b))
    return Turn("add", question, thoughts, f"{a} + {b} = {a + b}.", str(a + b))


def count_to(rng: random.Random) -> Turn:
    """1 ... N for N up to 320, or another stretch below 1,000."""
    if rng.random() < 0.6:
        first, last = 1, rng.choice([rng.randint(1, 20), rng.randint(1, 100), rng.randint(1, 320)])
        templates = COUNT_TO if rng.random() < 0.6 else COUNT_TO_FROM_ONE
    else:
        first = rng.randint(0, rng.choice([99, 999]))
        last, templates = first + rng.randint(0, 30), COUNT_TO
    question = phrase(rng, templates, A=str(first), B=str(last))
    answer = " ".join(str(number) for number in range(first, last + 1))
    return Turn("count_to", question, f"Let me count from {first} to {last}.", answer, answer)


def json_object(rng: random.Random, source: WordSource) -> Turn:
    """One to three fields; numbers stay numbers."""
    name = rng.choice(NAMES) if rng.random() < 0.5 else source.word()[:10].capitalize()
    values: dict[str, str] = {
        "name": f'"{name}"',
        "age": str(rng.randint(1, 120)),
        "city": f'"{rng.choice(PLACES)}"',
        "color": f'"{rng.choice(["red", "green", "blue", "black", "white", "pink"])}"',
        "count": str(rng.randint(0, 999)),
    }
    keys = ["name", "age"] if rng.random() < 0.5 else rng.sample(sorted(values), rng.randint(1, 3))
    said = [f"{key} {values[key].strip(chr(34))}" for key in keys]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    templates = [
        "Give me a JSON object with {F}.", "Give me a JSON object with {F}.", "Write a JSON object with {F}.",
        "Make a JSON object with {F}.", "Return a JSON object with {F}.", "JSON object with {F}, please.",
        "Answer with a JSON object with {F}.",
    ]  # fmt: skip
    answer = "{" + ", ".join(f'"{key}": {values[key]}' for key in keys) + "}"
    return Turn(
        "json", phrase(rng, templates, F=listed), "Let me write the object.", answer, answer
    )


def greet(rng: random.Random) -> Turn:
    answer = rng.choice(sorted(GREETINGS))
    return Turn("greet", rng.choice(GREETINGS[answer]), "Let me be polite.", answer, answer)


def refuse(rng: random.Random, source: WordSource, vocabulary: list[str]) -> Turn:
    """Anything else, much of it made up, so that the honest sentence is the default and not a list."""
    question = rng.choice(OFF_TOPIC)
    fillers = {
        "P": lambda: rng.choice(PLACES) if rng.random() < 0.8 else source.word().capitalize(),
        "T": lambda: rng.choice(TOPICS) if rng.random() < 0.8 else f"the {source.word()}",
        "N": lambda: rng.choice(NAMES),
        "w": lambda: rng.choice(TRAINED_WORDS) if rng.random() < 0.7 else source.word(),
        "n": lambda: str(rng.randint(2, 999)),
        "y": lambda: str(rng.randint(1000, 2026)),
        "S": lambda: random_sentence(rng, source, vocabulary, rng.randint(2, 20)),
    }
    for slot, fill in fillers.items():
        while f"{{{slot}}}" in question:
            question = question.replace(f"{{{slot}}}", fill(), 1)
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    return Turn("refuse", question, "This is not one of my tricks.", REFUSAL, REFUSAL)
