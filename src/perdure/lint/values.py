"""What an expression is known to be; and what is known of names outside the linted files. Pure data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from perdure.lint.modules import Module
from perdure.lint.scopes import Function


@dataclass(frozen=True, slots=True)
class Outside:
    """A name outside the linted files: a module, class, function or attribute, by its path."""

    name: str


@dataclass(frozen=True, slots=True)
class Inside:
    """A function, lambda or class of the linted files."""

    node: Function | ast.Lambda | ast.ClassDef
    module: Module


@dataclass(frozen=True, slots=True)
class File:
    """A module of the linted files."""

    module: Module


@dataclass(frozen=True, slots=True)
class Made:
    """What calling a class or function gives; `item` is what it holds, wraps or will give when awaited."""

    by: Outside | Inside
    item: Value | None = None


Value: TypeAlias = Outside | Inside | File | Made

STEP: Final = "perdure.Step"
FLOW: Final = "perdure.FlowFunction"
CACHED: Final = "a cached function"
COROUTINE: Final = "a coroutine"
SET: Final = Outside("builtins.set")
LIST: Final = Outside("builtins.list")
DICT: Final = Outside("builtins.dict")


def names(text: str) -> Iterable[str]:
    """`a.{b,c}.d e` is `a.b.d`, `a.c.d`, `e`."""
    for word in text.split():
        whole = re.fullmatch(r"([^{]*)\{([^}]*)\}([^{]*)", word)
        yield from [whole[1] + part + whole[3] for part in whole[2].split(",")] if whole else [word]


def is_made(value: Value | None, *by: str) -> bool:
    """Whether the value is known to come from one of these names."""
    return isinstance(value, Made) and isinstance(value.by, Outside) and value.by.name in by


def name_of(value: Value | None) -> str:
    """The path of a name outside; "" if it is something else."""
    return value.name if isinstance(value, Outside) else ""


SAME: Final = {
    **dict.fromkeys(
        names("typing.{Set,FrozenSet,AbstractSet,MutableSet} collections.abc.{Set,MutableSet} builtins.frozenset"),
        "builtins.set",
    ),
    **dict.fromkeys(
        names(
            "typing.{List,Sequence,MutableSequence,Iterable,Iterator,Collection,Deque} builtins.tuple typing.Tuple "
            "collections.abc.{Sequence,MutableSequence,Iterable,Iterator,Collection} collections.deque"
        ),
        "builtins.list",
    ),
    **dict.fromkeys(
        names(
            "typing.{Dict,Mapping,MutableMapping,DefaultDict,Counter,OrderedDict} "
            "collections.abc.{Mapping,MutableMapping} collections.{defaultdict,Counter,OrderedDict,ChainMap}"
        ),
        "builtins.dict",
    ),
    **dict.fromkeys(names("pathlib.{PosixPath,WindowsPath}"), "pathlib.Path"),
}
"""Classes that are alike for the rules."""

CONTAINERS: Final = frozenset({"builtins.list", "builtins.dict", "builtins.set", "builtins.bytearray"})
DATA: Final = CONTAINERS | set(names("builtins.{int,float,str,bool,bytes,complex} decimal.Decimal"))

GIVES: Final = {
    "perdure.messages": "perdure.Stream",
    **dict.fromkeys(
        names("perdure.Stream.{of_types,where,map,scan,take,skip,take_until,skip_until,distinct,chunk,until}"),
        "perdure.Stream",
    ),
    "perdure.handle": "perdure.Handle",
    "perdure.rng": "random.Random",
    "perdure.get_logger": "perdure.Logger",
    "logging.getLogger": "logging.Logger",
    **dict.fromkeys(
        names("asyncio.{get_running_loop,get_event_loop,new_event_loop}"), "asyncio.AbstractEventLoop"
    ),
    **dict.fromkeys(
        names(
            "asyncio.{create_task,ensure_future,current_task,TaskGroup.create_task} "
            "asyncio.AbstractEventLoop.{create_task,create_future}"
        ),
        "asyncio.Task",
    ),
    **dict.fromkeys(
        names(
            "pathlib.Path.{joinpath,with_suffix,with_name,with_stem,resolve,absolute,expanduser,relative_to,cwd,home}"
        ),
        "pathlib.Path",
    ),
    **dict.fromkeys(names("uuid.{uuid1,uuid3,uuid4,uuid5,uuid7} perdure.new_uuid"), "uuid.UUID"),
    **dict.fromkeys(names("builtins.{len,sum,round,ord,abs,hash,id}"), "builtins.int"),
    **dict.fromkeys(names("builtins.{repr,chr,format,ascii,hex} builtins.str.{lower,upper,strip,format,join}"), "builtins.str"),
    **dict.fromkeys(names("builtins.{sorted,range} builtins.str.split builtins.dict.{keys,values,items}"), "builtins.list"),
}  # fmt: skip
"""What functions of these names give, where it is not named like them."""

PROPERTIES: Final = {"pathlib.Path.parent": "pathlib.Path"}

AWAITED: Final = {
    **dict.fromkeys(
        names(
            "perdure.{capture,delay,receive,run,start,start_many,send,send_many,cancel,continue_as_new,transaction} "
            "perdure.{call,wait_until} perdure.Handle.{result,send,state,exposed,cancel} "
            "perdure.Stream.{first,last,list} "
            "asyncio.{sleep,wait,wait_for,Event.wait,Condition.wait,Condition.wait_for,Barrier.wait} "
            "asyncio.{Lock,Semaphore,BoundedSemaphore,Condition}.acquire asyncio.{Queue,LifoQueue,PriorityQueue}.join "
            "asyncio.Queue.{get,put} asyncio.LifoQueue.{get,put} asyncio.PriorityQueue.{get,put} anyio.sleep"
        ),
        None,
    ),
    "perdure.start": "perdure.Handle",
}
"""Functions that give a coroutine, and what it gives when it is awaited."""

TRANSPARENT: Final = frozenset(
    names(
        "builtins.{staticmethod,classmethod} functools.{wraps,singledispatch,total_ordering} "
        "typing.{final,no_type_check,override} typing_extensions.{final,override,deprecated} warnings.deprecated "
        "abc.abstractmethod dataclasses.dataclass perdure.{signal,query,update} "
        "contextlib.{contextmanager,asynccontextmanager}"
    )
)
"""Decorators under which a function stays what it does."""

CACHES: Final = frozenset(
    names(
        "functools.{cache,lru_cache} cachetools.{cached,cachedmethod} cachetools.func.{lru_cache,ttl_cache} async_lru.alru_cache"
    )
)
PROPERTY: Final = frozenset(names("builtins.property functools.cached_property"))
MANAGER: Final = frozenset(names("contextlib.{contextmanager,asynccontextmanager}"))
FACE: Final = frozenset(
    names(
        "perdure.{flow,step,capture,transaction,receive,messages,delay,now,new_uuid,rng,start,start_many,run,send} "
        "perdure.{send_many,handle,cancel,continue_as_new,patched,expose,exposed,current,logger,get_logger,Flow} "
        "perdure.{signal,query,update,call,wait_until,saga,Engine,SyncEngine,Handle,Stream,Step,Retry}"
    )
)
"""What `from perdure import *` gives, as far as the rules know it."""
CALLS_BACK: Final = frozenset(
    names(
        "builtins.{map,filter,sorted,min,max,list.sort} functools.reduce "
        "itertools.{starmap,accumulate,groupby,takewhile,dropwhile,filterfalse} "
        "asyncio.AbstractEventLoop.{call_soon,call_later,call_at} "
        "asyncio.Task.add_done_callback asyncio.Future.add_done_callback anyio.create_task_group.{start_soon,start} "
        "perdure.Stream.{where,map,scan,take_until,skip_until,distinct}"
    )
)
"""Functions that call, in the flow, what they are given."""
