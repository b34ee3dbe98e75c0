"""Units as they stand after a number: which are known, what they measure, and how they convert. Pure."""

from __future__ import annotations

import functools
import re

# scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"

_TABLE = {
    "length": "1e-3 mm millimeter millimetre 毫米; 1e-2 cm centimeter centimetre 厘米; 0.1 dm 分米; 1 m meter metre 米;"
    "1e3 km kilometer kilometre 千米 公里; 0.0254 in inch inche ″; 0.3048 ft foot feet ′; 0.9144 yd yard;"
    "1609.344 mi mile",
    "time": "1e-3 ms millisecond 毫秒; 1 s sec second 秒 秒钟; 60 min minute 分钟; 3600 h hr hour 小时; 86400 day;"
    "604800 week",
    "year": "1 year yr; 10 decade; 100 century",
    "mass": "1e-6 mg milligram 毫克; 1e-3 g gram 克; 1 kg kilogram 公斤 千克; 0.45359237 lb pound;"
    "0.028349523125 oz ounce;"
    "1e3 t tonne 吨",
    "length*length": "1e4 ha hectare; 4046.8564224 acre",
    "length*length*length": "1e-3 l L liter litre 升; 1e-6 ml milliliter millilitre 毫升",
    "length/time": "0.44704 mph; 0.2777777777777778 kph kmh kmph",
    "angle": "1 ° degree deg 度; 57.29577951308232 rad radian",
    "celsius": "1 °c celsius centigrade 摄氏度",
    "fahrenheit": "1 °f fahrenheit 华氏度",
    "current": "1 A amp ampere; 1e-3 ma milliampere",
    "voltage": "1 V volt; 1e3 kv kilovolt",
    "power": "1 W watt; 1e3 kw kilowatt",
    "force": "1 N newton",
    "energy": "1 J joule; 1e3 kj kilojoule",
    "/time": "1 hz hertz; 1e3 khz kilohertz; 1e6 mhz megahertz; 1e9 ghz gigahertz",
    "usd": "1 $ usd dollar",
    "eur": "1 € eur euro",
    "gbp": "1 £ gbp",
    "yen": "1 ¥",
}
_KNOWN = {
    name: (dimension, float(entry.split()[0]))
    for dimension, table in _TABLE.items()
    for entry in table.split(";")
    for name in entry.split()[1:]
}

_WORD = rf"(?:(?![{UNSPACED}])[^\W\d_])+"
_SYMBOL = "[\u00b0$\u20ac\u00a3\u00a5'\"\u2032\u2033]"
_NAME = rf"(?:\u00b0 ?[CF](?![A-Za-z])|degrees? (?:celsius|fahrenheit|centigrade)|{_SYMBOL}|{_WORD})"
_POWER = r"(?: ?\^ ?\{?-?\d\}?|[23](?!\w))?"
_NO_UNIT = (
    "a|an|the|is|are|was|were|and|or|to|of|at|on|for|by|as|with|from|because|since|so|total|that|which|"
    "per|out|if|there|altogether|overall|approximately|exactly|only|according|based|left|more"
)
UNIT = re.compile(
    rf" ?-?(?!(?:{_NO_UNIT})(?!\w)|in \w)"
    rf"(?P<unit>(?:(?:square|cubic|sq\.?|cu\.?) )?{_NAME}{_POWER}(?: (?:squared|cubed)\b)?"
    rf"(?: ?(?:/|\*|\bper\b) ?{_NAME}{_POWER})*)",
    re.IGNORECASE,
)
"""A unit, or the word that stands where a unit would, right after a number."""
_FACTOR = re.compile(
    rf"(?P<by>/|\*|per)? ?(?:(?P<shape>square|cubic|sq\.?|cu\.?) )?(?P<name>{_NAME}|[{UNSPACED}]+)"
    r"(?: ?\^ ?\{?(?P<power>-?\d)\}?|(?P<digit>[23]))?"
    r"(?: (?P<after>squared|cubed))?\s*",
    re.IGNORECASE,
)
_RAISED = {"sq": 2, "square": 2, "squared": 2, "cu": 3, "cubic": 3, "cubed": 3}
# particles, not counters: 5是, 5左右, 5到7
_PARTICLES = "\u662f\u7684\u4e86\u548c\u5230\u6216\u4e0e\u81f3\u5de6\u5728\u7b49\u5171"


def spoken_unit(text: str, at: int) -> tuple[str, int] | None:
    """A unit or counter of an unspaced script at `at` (a blank may come first), and where it ends; None without."""
    begin = at + 1 if text[at : at + 1] == " " else at
    for size in (3, 2, 1):
        name = text[begin : begin + size]
        if len(name) == size and name in _KNOWN and re.match(rf"[{UNSPACED}]", name):
            return name, begin + size
    found = re.match(rf"[{UNSPACED}]", text[begin : begin + 1])
    if found and found[0] not in _PARTICLES + "\u767e\u5343\u4e07\u842c\u4ebf\u5104":
        return found[0], begin + 1
    return None


@functools.lru_cache(maxsize=4096)
def known_unit(text: str) -> tuple[tuple[tuple[str, int], ...], float] | None:
    """What a unit measures, as powers of base dimensions, and its size in their units; None where a part is unknown."""
    powers: dict[str, int] = {}
    scale, at = 1.0, 0
    while at < len(text):
        found = _FACTOR.match(text, at)
        entry = _entry(found["name"]) if found else None
        if found is None or entry is None:
            return None
        power = int(found["power"] or found["digit"] or 1)
        power *= _RAISED.get((found["shape"] or "").lower().rstrip("."), 1)
        power *= _RAISED.get((found["after"] or "").lower(), 1)
        power = -power if found["by"] and found["by"] != "*" else power
        for sign, dimension in re.findall(r"([*/]?)(\w+)", entry[0]):
            powers[dimension] = powers.get(dimension, 0) + (-power if sign == "/" else power)
        scale *= entry[1] ** power
        at = found.end()
    measured = tuple(sorted((d, p) for d, p in powers.items() if p))
    return (measured, scale) if text else None


def _entry(name: str) -> tuple[str, float] | None:
    """By its name or symbol, in the plural too; a single letter only as it is written (M is no metre)."""
    name = {"'": "\u2032", '"': "\u2033"}.get(name, name)
    if len(name) == 1:
        return _KNOWN.get(name)
    name = re.sub(r"\u00b0 |degrees? ", "\u00b0" if "\u00b0" in name else "", name.lower())
    return _KNOWN.get(name) or _KNOWN.get(name.removesuffix("s")) or _KNOWN.get(name.removesuffix("es"))
