"""A prescription as HTML, for notebooks; every text in it stands for itself."""

from __future__ import annotations

from html import escape

from lightning_gradwatch.trials.records import Prescription
from lightning_gradwatch.trials.table import cells


def as_html(prescription: Prescription) -> str:
    """Diagnosis, table, the code of the remedies that help, each to be unfolded, and what could not be tried."""
    sentences = [prescription.diagnosis, *([str(prescription.headroom)] if prescription.headroom else [])]
    parts = [f"<p>{escape(sentence)}</p>" for sentence in sentences]
    if prescription.trials:
        header, *rows = cells(prescription)
        body = "".join(_row(row, "td") for row in rows)
        parts.append(f"<table><thead>{_row(header, 'th')}</thead><tbody>{body}</tbody></table>")
    helpful = [trial for trial in prescription.trials if trial.effect == "helps" and trial.code]
    for trial in helpful:
        is_open = " open" if trial is helpful[0] else ""
        parts.append(
            f"<details{is_open}><summary>{escape(trial.remedy)}: the code</summary>"
            f"<pre>{escape(trial.code)}</pre></details>"
        )
    if prescription.not_tried:
        lines = [f"<li>{escape(f'{one.remedy}: {one.why}')}</li>" for one in prescription.not_tried]
        parts.append(f"<p>Not tried:</p><ul>{''.join(lines)}</ul>")
    return f"<div>{''.join(parts)}</div>"


def _row(row: tuple[str, ...], tag: str) -> str:
    cells = "".join(f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in row)
    return f"<tr>{cells}</tr>"
