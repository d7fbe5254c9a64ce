"""Reads scripts/mutations.txt, for scripts/mutate-attacks, and scripts/torture-bugs.txt, for scripts/torture.

mutations.py apply TREE     puts every mutation into a copy of the tree; OFF becomes the question whether it is on
mutations.py list PART      those with that in their name, a line each: name, the labels it meets, what is out, SQL
                            beside it, SQL afterwards, tests
mutations.py report FILE    what the run has found out, as text
mutations.py bugs           the names in scripts/torture-bugs.txt
mutations.py bug NAME TREE  puts that one into a copy of the tree
"""

import collections
import pathlib
import re
import sys

KEYS = ("meets", "test", "without", "sql", "after")

# Of fields that may be empty; unlike a tab it is no white space to a shell.
SEPARATOR = "\x1f"

# The run in which nothing is out.
NOTHING = "nothing"


def read(path):
    """Every mutation: its name, or None for what all need; its keys; its hunks (file, old lines, new lines)."""
    mutations, hunks, file, old, new = [], None, None, [], []

    def end_hunk():
        if old or new:
            if not old or not new:
                sys.exit(f"{mutations[-1][0]}: half a hunk")
            hunks.append((file, old[:], new[:]))
            old.clear()
            new.clear()

    for number, line in enumerate(path.read_text().splitlines(), 1):
        key, _, rest = line.partition(" ")
        if key == "-":
            if new:
                end_hunk()
            old.append(rest)
            continue
        if key == "+":
            new.append(rest)
            continue
        if mutations:
            end_hunk()
        if not line or line.startswith("#"):
            continue
        if key in ("mutation", "always"):
            hunks, file = [], None
            mutations.append((rest or None, {}, hunks))
        elif key == "file":
            file = rest
        elif key in KEYS:
            mutations[-1][1][key] = rest
        else:
            sys.exit(f"{path}:{number}: {line}")
    end_hunk()
    names = [name for name, _, _ in mutations if name]
    if len(names) != len(set(names)):
        sys.exit("two mutations have one name")
    # They are values of a setting that is a list.
    if wrong := [name for name in names if not re.fullmatch("[A-Za-z -]+", name)]:
        sys.exit(f"letters and spaces alone: {wrong}")
    return mutations


def apply(mutations, tree):
    wrong = []
    for name, _, hunks in mutations:
        for file, old, new in hunks:
            path = tree / file
            lines = path.read_text().splitlines()
            wanted = [line.strip() for line in old]
            stripped = [line.strip() for line in lines]
            places = [at for at in range(len(lines)) if stripped[at : at + len(wanted)] == wanted]
            if len(places) != 1:
                wrong.append(f"{name}: {len(places)} places in {file} for: {old[0].strip()}")
                continue
            at = places[0]
            if file.endswith(".sql"):
                asks = f"(pg_catalog.current_setting('tenant_rls.without', true) = '{name}')"
            else:
                asks = f'crate::gucs::without("{name}")'
            lines[at : at + len(wanted)] = [line.replace("OFF", asks) for line in new]
            path.write_text("\n".join(lines) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


def report(lines):
    """Attacks count if the extension's own guards, and not those of the server alone, turn them red."""
    guards, red, kinds, tests = [], collections.defaultdict(set), {}, collections.defaultdict(lambda: [0, 0])
    for line in lines:
        kind, *rest = line.split("\t")
        if kind == "red":
            red[rest[0]].add(rest[1])
        elif kind in ("guard", "server"):
            guards.append((kind, rest[0], int(rest[1]), int(rest[2])))
        elif kind in ("attack", "leak"):
            kinds[rest[0]] = (kind, rest[1])
        elif kind == "test":
            tests[rest[0]][0] += int(rest[1])
            tests[rest[0]][1] += int(rest[2])
    for kind, name, count, tried in guards:
        print(f"{count:4} of {tried:4} attacks  {name}{' (the server guards this)' if kind == 'server' else ''}")
    for name, (failed, run) in tests.items():
        print(f"{failed:4} of {run:4} tests    {name}")
    servers = {name for kind, name, _, _ in guards if kind == "server"}
    attacks = {name for name, (kind, _) in kinds.items() if kind == "attack"}
    ours = attacks & set().union(*(red[name] for name in red if name not in servers | {NOTHING}))
    theirs = attacks & set().union(*(red[name] for name in servers)) - ours
    silent = sorted((kinds[name][1], name) for name in attacks - ours - theirs)
    print()
    print(f"{len(attacks)} attacks, and {len(kinds) - len(attacks)} that succeed by design.")
    print(f"{len(ours)} are turned red by a guard of the extension: these count.")
    print(f"{len(theirs)} only by privileges that the server guards.")
    print(f"{len(silent)} by nothing here:")
    for label, name in silent:
        print(f"  {label:24} {name}")
    if red[NOTHING]:
        sys.exit(f"red although nothing is out: {', '.join(sorted(red[NOTHING]))}")
    noticed = {name for name in red if red[name]} | {name for name, (failed, _) in tests.items() if failed}
    unnoticed = ({name for _, name, _, _ in guards} | set(tests)) - noticed - {NOTHING}
    if unnoticed:
        sys.exit("noticed by nothing: " + "; ".join(sorted(unnoticed)))


def main():
    is_bug = sys.argv[1:2] in (["bugs"], ["bug"])
    file = "torture-bugs.txt" if is_bug else "mutations.txt"
    mutations = read(pathlib.Path(__file__).with_name(file))
    match sys.argv[1:]:
        case ["apply", tree]:
            apply(mutations, pathlib.Path(tree))
        case ["list", part]:
            for name, keys, _ in mutations:
                if name and part in name:
                    out = ",".join([name, *filter(None, map(str.strip, keys.get("without", "").split(",")))])
                    meets, *others = (keys.get(key, "") for key in ("meets", "sql", "after", "test"))
                    print(name, meets, out, *others, sep=SEPARATOR)
        case ["report", file]:
            report(pathlib.Path(file).read_text().splitlines())
        case ["bugs"]:
            print(*[name for name, _, _ in mutations], sep="\n")
        case ["bug", name, tree] if name in [known for known, _, _ in mutations]:
            apply([bug for bug in mutations if bug[0] == name], pathlib.Path(tree))
        case _:
            sys.exit(__doc__)


main()
