"""What the kept grafts descend from: each design before its parents, as far back as the library knows. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from esper.nissa.pedigrees import Pedigrees

KARN = "karn"  # the author of what was bred


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A line of a family tree. `generation`: 0 for what fossilised. `repeated`: its own parents stand further up."""

    generation: int
    blueprint_id: str
    title: str
    author: str
    source: str  # a paper, or what was done to the parents
    repeated: bool = False


def family(blueprint_id: str, pedigrees: Pedigrees) -> list[Ancestor]:
    """A blueprint, then the tree of each of its parents; of one that is not known nothing but the id."""
    lines, seen, ahead = list[Ancestor](), set[str](), [(0, blueprint_id)]
    while ahead:
        generation, name = ahead.pop()
        entry = pedigrees.get(name)
        if entry is None:
            lines.append(Ancestor(generation, name, "", "", ""))
            continue
        repeated = name in seen and bool(entry.parent_ids)
        lines.append(
            Ancestor(generation, name, entry.title, entry.author, in_words(entry.author, entry.source), repeated)
        )
        if not repeated:
            seen.add(name)
            ahead += [(generation + 1, parent) for parent in reversed(entry.parent_ids)]
    return lines


def in_words(author: str, source: str) -> str:
    """The source of a blueprint for people to read: of a design of Karn its moves, one after the other."""
    if author != KARN:
        return source
    purpose, _, moves = source.partition("; ") if source.startswith("made for ") else ("", "", source)
    return ": ".join(part for part in (purpose, moves.replace("; ", ", then ")) if part)


def ancestry(blueprint_ids: Iterable[str], pedigrees: Pedigrees) -> dict[str, dict[str, object]]:
    """Of these blueprints and all they descend from what lineage.json says, by id."""
    names = {one.blueprint_id for name in blueprint_ids for one in family(name, pedigrees)}
    known = {name: pedigrees[name] for name in sorted(names) if name in pedigrees}
    return {
        name: {
            "title": entry.title,
            "family": entry.family,
            "author": entry.author,
            "source": entry.source,
            "parents": list(entry.parent_ids),
        }
        for name, entry in known.items()
    }
