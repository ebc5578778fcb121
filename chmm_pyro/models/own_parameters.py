"""Modules that train their own parameters, however many others have the same attributes."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.nn import PyroModule

__all__ = ["OwnParameters"]


class OwnParameters(PyroModule):
    """A ``PyroModule`` whose parameters are its own wherever it is called.

    Pyro registers parameters in one store under the path of their attributes, first come first
    served.  With a second model of the same class its optimizers would go on moving the first
    one's parameters and silently leave the second untrained.  Here a call forgets what another
    module has registered under the names of this one, so models are trained in any order, in
    turns too, without ``pyro.clear_param_store()`` between them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        store = pyro.get_param_store()
        if store.keys():
            with self._pyro_context:  # names are known inside
                own = {
                    self._pyro_get_fullname(name).removesuffix("_unconstrained"): parameter
                    for name, parameter in self.named_parameters()
                }
            for name in list(store.keys()):
                # Pyro marks where ordinary modules begin.
                mine = own.get(name.replace("$$$", "."))
                if mine is not None and store[name].unconstrained() is not mine:
                    del store[name]
        return super().__call__(*args, **kwargs)
