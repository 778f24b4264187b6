"""The vocabulary of the second world with CLIP's token ids: one token per word."""

from __future__ import annotations

WORDS: dict[str, int] = {
    "a": 320, "an": 550, "and": 537, "at": 536, "big": 1205, "bird": 3329, "birds": 4337,
    "blue": 1746, "bursts": 37026, "city": 1305, "day": 575, "desert": 7301, "dusk": 19708,
    "face": 1710, "falls": 4778, "filled": 5589, "firework": 40750, "fireworks": 10641,
    "flies": 8070, "flows": 16715, "fly": 3228, "flying": 4610, "forest": 4167, "girl": 1611,
    "green": 1901, "guitar": 5084, "hair": 2225, "helicopter": 11956, "hills": 5289,
    "horse": 4558, "in": 530, "man": 786, "mountains": 5873, "moves": 6880, "moving": 3584,
    "near": 2252, "night": 930, "noon": 2347, "on": 525, "orange": 4287, "outline": 26894,
    "people": 1047, "photo": 1125, "picture": 1674, "pink": 3360, "pixel": 13241, "play": 1453,
    "playing": 1629, "plays": 5134, "purple": 5496, "rain": 2443, "red": 736, "rocks": 6135,
    "running": 2761, "runs": 5586, "sea": 2102, "shaded": 43506, "sky": 2390, "small": 2442,
    "smile": 3490, "smiles": 8726, "smiling": 9200, "still": 1170, "sunset": 3424, "the": 518,
    "to": 531, "turn": 2105, "two": 1237, "umbrella": 17143, "video": 1455, "waterfall": 16403,
    "white": 1579, "with": 593, "woman": 2308, "yellow": 4481,
}  # fmt: skip
