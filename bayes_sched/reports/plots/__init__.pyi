"""The modules of this room, each loaded when it is first used."""

from . import fit as fit
from . import limits as limits
from . import servers as servers
from . import studies as studies
from . import style as style
from . import trace as trace
from . import validation as validation
