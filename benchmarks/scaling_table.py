"""The figures of scaling.py on one screen."""


def table(rows: list[dict]) -> list[str]:
    """A line for each figure or remark."""
    lines = []
    for row in rows:
        if "ms" in row:
            words = [
                f"{row['item']:8}",
                f"{row.get('size', ''):>5} px",
                f"{row['devices']} x",
                f"{row.get('mode', ''):26}",
            ]
            words += [f"{row['ms']:9.2f} ms"]
            words += [
                f"{name} {row[name]:.3g}"
                for name in ("speedup", "relative_error", "exposed_ms", "received_mb")
                if name in row
            ]
            lines.append("  ".join(words))
        elif "failed" in row or "skipped" in row or "said" in row:
            lines.append(f"{row['item']}: {row.get('failed', row.get('skipped', row.get('said')))}")
    return lines
