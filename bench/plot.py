"""Lines in an SVG file, for the documents."""
import html
import math

COLORS = ["#1f6feb", "#c2410c", "#15803d", "#7c3aed", "#5c6570", "#0e7490", "#be185d"]
W, H, L, R, T, B = 640, 360, 64, 16, 40, 72


def round_steps(low, high, n):
    raw = (high - low) / n or 1
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    at, ticks = math.ceil(low / step), []
    while at * step <= high * (1 + 1e-9):
        ticks.append(at * step)
        at += 1
    return ticks


def short(value):
    return f"{value / 1024:g}K" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def lines(path, title, x_label, y_label, series, x_ticks=None):
    """series: {name: [(x, y), ...]}; y begins at 0."""
    xs = [x for points in series.values() for x, _ in points]
    top = max(y for points in series.values() for _, y in points) * 1.05 or 1
    low, high = min(xs), max(xs)
    px = lambda x: L + (x - low) / ((high - low) or 1) * (W - L - R)
    py = lambda y: H - B - y / top * (H - T - B)
    legend, at, row = [], L, 0  # of each name: where it stands
    for name in series:
        width = 40 + 7 * len(name)
        if at > L and at + width > W:
            at, row = L, row + 1
        legend.append((at, H - 22 + 18 * row))
        at += width
    full = H + 18 * row
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {full}" font-family="system-ui,sans-serif" font-size="12">',
           f'<rect width="{W}" height="{full}" fill="#fff"/><text x="{L}" y="22" font-size="15" fill="#1b1f24">{html.escape(title)}</text>']
    for y in round_steps(0, top, 5):
        out.append(f'<line x1="{L}" x2="{W - R}" y1="{py(y):.1f}" y2="{py(y):.1f}" stroke="#dfe3e8"/>'
                   f'<text x="{L - 6}" y="{py(y) + 4:.1f}" text-anchor="end" fill="#5c6570">{y:g}</text>')
    for x in x_ticks or round_steps(low, high, 6):
        out.append(f'<text x="{px(x):.1f}" y="{H - B + 18}" text-anchor="middle" fill="#5c6570">{short(x)}</text>')
    out.append(f'<text x="{(L + W - R) / 2}" y="{H - B + 36}" text-anchor="middle" fill="#5c6570">{html.escape(x_label)}</text>'
               f'<text transform="translate(16 {(T + H - B) / 2}) rotate(-90)" text-anchor="middle" fill="#5c6570">{html.escape(y_label)}</text>')
    for i, (name, points) in enumerate(series.items()):
        color, (x, y) = COLORS[i % len(COLORS)], legend[i]
        out.append(f'<rect x="{x}" y="{y}" width="14" height="3" fill="{color}"/><text x="{x + 20}" y="{y + 6}" fill="#1b1f24">{html.escape(name)}</text>')
        joined = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        out.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{joined}"/>')
        if len(points) < 40:
            out += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{color}"/>' for x, y in points]
    path.write_text("\n".join(out) + "</svg>\n")
