"""How COCO's pictures are called."""


def file_names(number: int, subtype: str = "") -> list[str]:
    """The names that a picture's file may have, the official one first.

    `subtype` is what VQAv2's official files call `data_subtype`, such as `val2014`; before 2017 names began with it.
    """
    bare = f"{number:012d}.jpg"
    return [f"COCO_{subtype}_{bare}", bare] if subtype else [bare]
