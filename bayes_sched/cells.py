"""Steps repeat themselves: each distinct one is predicted once, in chunks that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.steps import POSSIBLE

MAX_CHUNK_VALUES = 2**16
"""Values (draws times cells) of one array in a chunk: 0.5 MB, so that a dozen of them stay in a cache."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The distinct steps among some steps, and the way back.

    Attributes
    ----------
    table : Dataset, dims (cell,)
        The columns of the distinct steps.
    cell_of_step : ndarray, dims (flattened steps,)
        Row of `table` for each step.
    template : DataArray
        Dims and coordinates of the steps; True where a step is possible.
    """

    table: xr.Dataset
    cell_of_step: NDArray[np.int64]
    template: xr.DataArray

    @classmethod
    def of(cls, steps: xr.Dataset, *, columns: Sequence[str]) -> Cells:
        """Return the distinct rows of `columns`, broadcast against each other.

        Parameters
        ----------
        steps : Dataset
            Variables or coordinates `columns`, any dims; ``possible``, if it is there, as a mask.
        """
        parts = [steps[name].reset_coords(drop=True) for name in columns]
        mask = steps[POSSIBLE] if POSSIBLE in steps else xr.DataArray(True)
        *parts, template = xr.broadcast(*parts, mask)
        template = template.assign_coords(
            {name: steps[name] for name in columns if set(steps[name].dims) <= set(template.dims)}
        )
        rows = np.stack([part.transpose(*template.dims).to_numpy().ravel() for part in parts], axis=-1)
        distinct, cell_of_step = np.unique(rows, axis=0, return_inverse=True)
        table = xr.Dataset({name: ("cell", distinct[:, i]) for i, name in enumerate(columns)})
        return cls(table, cell_of_step.ravel(), template)

    def chunks(self, *, num_draws: int) -> Iterator[xr.Dataset]:
        """Yield consecutive slices of the table, small enough for `num_draws` draws each."""
        size = max(1, MAX_CHUNK_VALUES // num_draws)
        for start in range(0, self.table.sizes["cell"], size):
            yield self.table.isel(cell=slice(start, start + size))

    def spread(
        self, values: NDArray[np.float64], *, leading: Mapping[str, NDArray[np.generic]] | None = None
    ) -> xr.DataArray:
        """Return values of the cells as values of the steps.

        Parameters
        ----------
        values : ndarray, dims (*leading, cell)
        leading : mapping of str to ndarray, optional
            The coordinate of each leading dim.

        Returns
        -------
        DataArray, dims (*leading, *dims of the steps)
            NaN where a step is not possible.
        """
        leading = leading or {}
        shape = (*values.shape[:-1], *self.template.shape)
        result = xr.DataArray(
            values[..., self.cell_of_step].reshape(shape),
            dims=(*leading, *self.template.dims),
            coords={**self.template.coords, **leading},
        )
        return result if bool(self.template.all()) else result.where(self.template)
