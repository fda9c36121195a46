"""The tables of what has been measured of jobs and webhooks: figures that outlive what they were measured on.

An observation is written in the transaction of what it says, and locks nothing that another writes. The reconciler adds
observations up into `histograms`. Both together are the totals since the database was made: deleting a job takes
nothing away, every process that is asked says the same, and none of them starts at zero.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Serial


class Observation(Base):
    """One measurement that is not added up yet."""

    __tablename__ = "observations"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    metric: Mapped[str] = mapped_column(String(60))
    labels: Mapped[str] = mapped_column(String(300))
    """Values of the metric's labels, in their order, as a JSON list."""
    bound_ms: Mapped[int] = mapped_column(BigInteger)
    """The least bound that is not below the value."""
    value_ms: Mapped[int] = mapped_column(BigInteger)


class HistogramCell(Base):
    """How many observations have fallen below a bound and not below the one before it, and their sum."""

    __tablename__ = "histograms"

    metric: Mapped[str] = mapped_column(String(60), primary_key=True)
    labels: Mapped[str] = mapped_column(String(300), primary_key=True)
    bound_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)
    sum_ms: Mapped[int] = mapped_column(BigInteger)
