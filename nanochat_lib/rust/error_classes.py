"""Rustc's error codes by class: what kind of mistake a message is about.

Input: a code such as "E0382". Output: its class. Messages without a code are `others`.
Source: rustc's error index (https://doc.rust-lang.org/error_codes).
"""

from __future__ import annotations

from typing import Literal

ErrorClass = Literal["resolution", "types", "lifetimes", "ownership", "others"]
ERROR_CLASSES: tuple[ErrorClass, ...] = (
    "resolution", "types", "lifetimes", "ownership", "others",
)  # fmt: skip


def _codes(text: str) -> frozenset[str]:
    return frozenset("E" + code for code in text.split())


_RESOLUTION = _codes(
    "0252 0254 0255 0259 0260 0364 0365 0401 0403 0404 0405 0407 0408 0411 0412 0415 0416 0422 "
    "0423 0424 0425 0426 0428 0429 0430 0431 0432 0433 0434 0435 0437 0438 0451 0463 0530 0531 "
    "0532 0573 0574 0575 0576 0603 0616 0624 0659 0742"
)
_LIFETIMES = _codes(
    "0106 0195 0226 0227 0228 0261 0262 0263 0309 0310 0311 0373 0477 0478 0482 0491 0495 0496 "
    "0515 0521 0597 0621 0623 0626 0637 0700 0712 0716 0726 0759 0803"
)
_OWNERSHIP = _codes(
    "0381 0382 0384 0493 0499 0500 0501 0502 0503 0505 0506 0507 0508 0509 0510 0524 0594 0596 0713"
)
# Lexer, attributes, unsafety, unstable features, linking: no statement about meaning.
_OTHERS = _codes(
    "0133 0152 0455 0458 0459 0466 0468 0469 0514 0517 0518 0519 0522 0536 0537 0538 0539 0541 "
    "0552 0554 0565 0583 0584 0585 0586 0587 0588 0589 0601 0602 0635 0636 0658 0748 0753 0754 "
    "0758 0762 0763 0765 0766 0768 0788"
)


def error_class(code: str) -> ErrorClass:
    """Return the class of an error code; messages without a code are `others`."""
    if code in _RESOLUTION:
        return "resolution"
    if code in _LIFETIMES:
        return "lifetimes"
    if code in _OWNERSHIP:
        return "ownership"
    is_type_code = code.startswith("E") and code[1:].isdigit() and code not in _OTHERS
    return "types" if is_type_code else "others"
