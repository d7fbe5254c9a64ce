"""The results as a Markdown table and as a chart."""

import math
from dataclasses import dataclass
from html import escape

from harness import Ratio


@dataclass
class Line:
    """A row of the table: ours against one peer."""

    name: str
    text: str
    peer: str
    time: Ratio | None
    cpu: Ratio | None
    time_target: float | None
    cpu_target: float | None
    # Microseconds of a call: ours, the peer's.
    times: tuple[float, float] | None = None
    cpus: tuple[float, float] | None = None
    rounds: int = 0
    # For what is asked of the calls a second, a multiple of the peer's.
    rate_target: float | None = None
    # For what is not a ratio.
    value: str = ""
    target: str = ""
    met: bool | None = None

    def verdict(self):
        """Whether every target that was measured is met, to the two digits that are printed."""
        if self.met is not None:
            return self.met
        judged = [verdict for verdict in (self.time_verdict(), self.cpu_verdict()) if verdict is not None]
        return all(judged) if judged else None

    def time_verdict(self):
        if self.time and self.rate_target:
            return round(1 / self.time.median, 2) >= self.rate_target
        return within(self.time, self.time_target)

    def cpu_verdict(self):
        return within(self.cpu, self.cpu_target)

    def targets(self):
        if self.target:
            return self.target
        if self.time_target == self.cpu_target and self.time_target:
            return f"≤ {self.time_target:.2f}"
        parts = []
        if self.rate_target:
            parts.append(f"rate ≥ {self.rate_target:.2f}")
        if self.time_target:
            parts.append(f"time ≤ {self.time_target:.2f}")
        if self.cpu_target:
            parts.append(f"CPU ≤ {self.cpu_target:.2f}")
        return ", ".join(parts)


def within(ratio, target):
    return round(ratio.median, 2) <= round(target, 2) if ratio and target else None


def ratio(value):
    return f"{value.median:.2f}" if value else ""


def time_cell(line):
    if line.time and line.rate_target:
        return f"{line.time.median:.2f} (rate {1 / line.time.median:.2f})"
    return ratio(line.time)


def spread(value):
    return f"{value.low:.2f} – {value.high:.2f}" if value else ""


def micros(pair):
    if not pair:
        return ""
    digits = 0 if max(pair) >= 1000 else 1 if max(pair) >= 10 else 2
    return f"{pair[0]:.{digits}f} / {pair[1]:.{digits}f}"


def word(met):
    return {True: "met", False: "**missed**", None: ""}[met]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def markdown(facts, lines, notes, limits, chart):
    """The whole page. `facts` are (name, value) pairs, `limits` is a table."""
    judged = [line.verdict() for line in lines if line.verdict() is not None]
    parts = [
        "# What tenant_rls costs",
        f"{judged.count(True)} of {len(judged)} targets met. A ratio is our time divided by the peer's: below 1 is"
        " faster; *rate* is the number of calls a second divided by the peer's. Only ratios within one run mean something; another machine has other times.",
        f"![Ratios and targets]({chart})",
        table(
            ["work", "against", "time", "server CPU", "target", ""],
            [
                [line.text, line.peer, line.value or time_cell(line), ratio(line.cpu), line.targets(), word(line.verdict())]
                for line in lines
            ],
        ),
        "## How it was measured",
        table(["", ""], [[name, value] for name, value in facts]),
        "*Time*: pgbench, prepared statements unless said, over a Unix socket; the median over rounds of the ratio"
        " within a round. The sides alternate: ours, peer; peer, ours; …\n\n"
        "*Server CPU*: what the kernel charged to the server process, user and system, for a loop of calls in one"
        " `DO` block, the same loop on both sides.\n\n"
        "The app role is no superuser and owns nothing: it has what `tenant_grant` gives and the four privileges on"
        " the tables. Copies of tables hold the same rows in the same order, with the same indexes.",
    ]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    if limits:
        parts += [
            "## Where the rate stops",
            "Calls a second for one tenant and resource by the number of clients (the chart of docs/quotas.md), and, in"
            " another run, what the processors of the machine did, clients included, and what the sessions were found"
            " waiting for.",
            limits,
        ]
    measured = [line for line in lines if line.times or line.cpus]
    if measured:
        parts += [
            "## Figures",
            "Microseconds of a call, ours / the peer's, medians; ranges are the middle half of the rounds.",
            table(
                ["name", "against", "time, µs", "ratio, range", "CPU, µs", "ratio, range", "rounds"],
                [
                    [
                        f"`{line.name}`",
                        line.peer,
                        micros(line.times),
                        spread(line.time),
                        micros(line.cpus),
                        spread(line.cpu),
                        str(line.rounds),
                    ]
                    for line in measured
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


INK, FAINT, MET, MISSED, TARGET = "#1f2933", "#d5dae1", "#2f7d5b", "#c2410c", "#1d4ed8"
LEFT, PLOT, RIGHT, ROW, TOP = 470, 430, 70, 40, 66


def svg(title, lines):
    """Bars of the ratios, time above CPU, with a tick where the target is."""
    lines = [line for line in lines if line.time or line.cpu]
    most = 2.0
    width, height = LEFT + PLOT + RIGHT, TOP + ROW * len(lines) + 34

    def x(value):
        return LEFT + PLOT * min(value, most) / most

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="16" y="46" fill="{INK}">Ours divided by the peer&apos;s: upper bar time, lower (lighter) bar'
        " server CPU; the blue tick is the target, green meets it.</text>",
    ]
    bottom = TOP + ROW * len(lines)
    for step in range(0, 5):
        value = step * most / 4
        out.append(
            f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="{FAINT}"'
            f' stroke-width="{2 if value == 1 else 1}"/>'
        )
        out.append(f'<text x="{x(value):.1f}" y="{bottom + 18}" text-anchor="middle" fill="{INK}">{value:g}</text>')
    for number, line in enumerate(lines):
        top = TOP + ROW * number
        out.append(f'<text x="{LEFT - 12}" y="{top + 13}" text-anchor="end" fill="{INK}">{plain(line.text)}</text>')
        out.append(
            f'<text x="{LEFT - 12}" y="{top + 28}" text-anchor="end" font-size="10.5" fill="#5b6775">'
            f"against {plain(line.peer)}</text>"
        )
        time_target = 1 / line.rate_target if line.rate_target else line.time_target
        bars = [
            (line.time, time_target, line.time_verdict(), 1.0),
            (line.cpu, line.cpu_target, line.cpu_verdict(), 0.55),
        ]
        for place, (value, target, met, opacity) in enumerate(bars):
            if not value:
                continue
            y = top + 3 + place * 14
            end = x(value.median)
            out.append(
                f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="12" rx="2"'
                f' fill="{MISSED if met is False else MET}" fill-opacity="{opacity}"/>'
            )
            beyond = " →" if value.median > most else ""
            out.append(
                f'<text x="{max(end, x(target) if target else 0) + 6:.1f}" y="{y + 10}" font-size="10.5" fill="{INK}">'
                f"{value.median:.2f}{beyond}</text>"
            )
            if target:
                out.append(
                    f'<line x1="{x(target):.1f}" x2="{x(target):.1f}" y1="{y - 1}" y2="{y + 13}" stroke="{TARGET}"'
                    ' stroke-width="2.5"/>'
                )
    out.append("</svg>")
    return "\n".join(out) + "\n"


COLOURS = ["#2f7d5b", "#1d4ed8", "#7c3aed", "#c2410c", "#b45309", "#5b6775"]


def rates_svg(title, clients, series):
    """Lines of calls a second by the number of clients. `series` maps a name to the rates, in the order of `clients`."""
    width, height, left, right, top, bottom = 860, 480, 70, 250, 66, 440
    powers = [math.log10(rate) for rates in series.values() for rate in rates]
    low, high = math.floor(min(powers)), math.ceil(max(powers))

    def x(place):
        return left + (width - left - right) * place / (len(clients) - 1)

    def y(rate):
        return bottom - (bottom - top) * (math.log10(rate) - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="16" y="46" fill="{INK}">Calls a second (logarithmic) by clients, one tenant and resource, one machine.</text>',
    ]
    for power in range(low, high + 1):
        at = y(10**power)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{FAINT}"/>')
        label = f"{10**power:,}".replace(",", " ")
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end" fill="{INK}">{label}</text>')
    for place, number in enumerate(clients):
        out.append(f'<text x="{x(place):.1f}" y="{bottom + 20}" text-anchor="middle" fill="{INK}">{number}</text>')
    # Labels stand beside the ends of the lines, and below each other where these meet.
    free = 0.0
    ends = sorted(zip(series.items(), COLOURS), key=lambda item: -item[0][1][-1])
    for (name, rates), colour in ends:
        points = " ".join(f"{x(place):.1f},{y(rate):.1f}" for place, rate in enumerate(rates))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        free = max(y(rates[-1]) + 4, free)
        figure = f"{rates[-1]:,.0f}".replace(",", " ")
        out.append(f'<text x="{width - right + 10}" y="{free:.1f}" fill="{colour}">{plain(name)}: {figure}</text>')
        free += 15
    out.append("</svg>")
    return "\n".join(out) + "\n"


def plain(text):
    return escape(text.replace("`", ""))
