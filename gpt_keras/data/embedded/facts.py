"""A few things that conversations and answers are about."""

CAPITALS = {
    **{"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Portugal": "Lisbon"},
    **{"Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm"},
    **{"Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest"},
    **{"Japan": "Tokyo", "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa", "Peru": "Lima", "Cuba": "Havana"},
}
OPPOSITES = {
    **{
        "hot": "cold",
        "big": "small",
        "early": "late",
        "full": "empty",
        "light": "dark",
        "soft": "hard",
        "open": "closed",
    },
    **{"rich": "poor", "strong": "weak", "fast": "slow", "young": "old", "near": "far", "wet": "dry", "loud": "quiet"},
    **{"cheap": "expensive", "heavy": "light", "high": "low", "happy": "sad", "thick": "thin", "clean": "dirty"},
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    "December",
)
UNITS = (  # one of the first is so many of the second
    *(("meter", "centimeters", 100), ("kilometer", "meters", 1000), ("hour", "minutes", 60), ("minute", "seconds", 60)),
    *(("day", "hours", 24), ("week", "days", 7), ("kilogram", "grams", 1000), ("year", "months", 12)),
    *(("foot", "inches", 12), ("liter", "milliliters", 1000), ("century", "years", 100), ("dozen", "pieces", 12)),
)
PLURALS = {"foot": "feet", "century": "centuries"}
