"""Names outside the linted files that a flow must not call or read, with why and what to write instead. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from perdure.lint.values import names


@dataclass(frozen=True, slots=True)
class Known:
    """What is said about a name; with `below`, only of calls with fewer arguments than that."""

    code: str
    why: str
    instead: str
    below: int | None = None


_STEP: Final = "put it in a @step, or await capture(...)"
_CLOCK: Final = Known("PD101", "tells another time at each replay", "use now(), or measure inside a step")
_DATE: Final = Known(
    "PD102", "tells another time at each replay", "use now(), which is the same at each replay, in UTC"
)
_CHANCE: Final = Known("PD103", "draws something else at each replay", "use rng(), or await capture(...)")
_SECRET: Final = Known("PD103", "draws something else at each replay", "await capture(...): it is drawn once and kept")
_SEED: Final = Known("PD103", "is seeded by chance", "use rng(), or give it a seed that the flow got")
_UUID: Final = Known("PD104", "makes another id at each replay", "use new_uuid(), or await capture(uuid4)")
_ENVIRONMENT: Final = Known(
    "PD201", "may be another at replay, in another process", "give it to the flow as an argument, or await capture(...)"
)
_FILE: Final = Known("PD202", "blocks all flows, is done again at each replay, and may go another way then", _STEP)
_NETWORK: Final = Known("PD203", "reaches outside the flow: at each replay it would be done again", _STEP)
_SLEEP: Final = Known("PD204", "stops all flows of the process", "await delay(...), or await asyncio.sleep(...)")
_OFFLOAD: Final = Known(
    "PD205", "cannot be replayed: it raises NotDurable", "await capture(...): sync work gets a thread"
)
_THREAD: Final = Known(
    "PD206", "runs beside the flow, in no order that could be replayed", "await capture(...), or a task"
)
_LOCK: Final = Known(
    "PD206", "blocks all flows of the process", "use asyncio's Lock, Event or Queue, made inside the flow"
)
_PROCESS: Final = Known("PD207", "reaches another process: at each replay it would be done again", _STEP)
_RUN: Final = Known("PD507", "runs a loop inside the flow's loop, which fails", "await it")
_PRINT: Final = Known(
    "PD601", "prints again at each replay", "use logger or get_logger(name), which are silent then, or a step"
)
_LOG: Final = Known(
    "PD602", "logs again at each replay", "take the logger from perdure: get_logger(name) is silent then"
)

_HTTP: Final = "{get,post,put,patch,delete,head,options,request,stream,send,ws_connect}"
_LEVELS: Final = "{debug,info,warning,warn,error,exception,critical,fatal,log}"
_FILES: Final = (
    "{read_text,read_bytes,write_text,write_bytes,open,exists,is_file,is_dir,is_symlink,is_mount,stat,lstat,iterdir,glob,"
    "rglob,walk,mkdir,rmdir,unlink,rename,replace,touch,symlink_to,hardlink_to,chmod,owner,group,samefile,resolve,readlink}"
)
_OS_FILES: Final = (
    "os.{listdir,scandir,walk,fwalk,remove,unlink,rename,renames,replace,rmdir,removedirs,mkdir,makedirs,stat,lstat,access,"
    "chmod,chown,link,symlink,readlink,truncate,utime,open,read,write,close,fsync,fdatasync,pipe,mkfifo,chdir,statvfs}"
)
_RANDOM: Final = (
    "random.{random,uniform,triangular,randint,randrange,randbytes,getrandbits,choice,choices,sample,shuffle,seed,gauss,"
    "normalvariate,lognormvariate,expovariate,vonmisesvariate,gammavariate,betavariate,paretovariate,weibullvariate,"
    "binomialvariate,setstate,getstate}"
)
_NUMPY: Final = (
    "numpy.random.{rand,randn,randint,random,random_sample,choice,shuffle,permutation,uniform,normal,seed,bytes,poisson,"
    "exponential,binomial,beta,gamma,integers,standard_normal}"
)

_CALLS: Final[list[tuple[Known, str]]] = [
    (
        _CLOCK,
        (
            "time.{time,time_ns,monotonic,monotonic_ns,perf_counter,perf_counter_ns,process_time,process_time_ns,thread_time,"
            "thread_time_ns,clock_gettime,clock_gettime_ns}"
        ),
    ),
    (Known(_CLOCK.code, _CLOCK.why, _CLOCK.instead, below=1), "time.{localtime,gmtime,ctime,asctime}"),
    (Known(_CLOCK.code, _CLOCK.why, _CLOCK.instead, below=2), "time.strftime"),
    (
        _DATE,
        (
            "datetime.datetime.{now,utcnow,today} datetime.date.today django.utils.timezone.{now,localdate} "
            "pendulum.{now,today,tomorrow,yesterday} arrow.{now,utcnow} pandas.Timestamp.{now,utcnow,today}"
        ),
    ),
    (_CHANCE, f"{_RANDOM} {_NUMPY}"),
    (
        _SECRET,
        (
            "random.SystemRandom secrets.{token_bytes,token_hex,token_urlsafe,choice,randbelow,randbits,SystemRandom} "
            "os.{urandom,getrandom}"
        ),
    ),
    (Known(_SEED.code, _SEED.why, _SEED.instead, below=1), "random.Random numpy.random.{default_rng,RandomState}"),
    (_UUID, "uuid.{uuid1,uuid4,uuid6,uuid7,getnode}"),
    (
        _ENVIRONMENT,
        (
            "os.{getenv,getenvb,putenv,unsetenv,getpid,getppid,getcwd,getcwdb,getlogin,getuid,uname,cpu_count,"
            "process_cpu_count,getloadavg,get_terminal_size} os.path.{expanduser,expandvars,abspath} "
            "pathlib.Path.{home,cwd,expanduser,absolute} socket.{gethostname,getfqdn} getpass.getuser "
            "platform.{node,platform,uname,system,release,version,machine,processor} shutil.{which,get_terminal_size} "
        ),
    ),
    (
        _FILE,
        (
            f"builtins.{{open,input}} io.open codecs.open getpass.getpass {_OS_FILES} pathlib.Path.{_FILES} "
            "os.path.{exists,lexists,isfile,isdir,islink,ismount,getsize,getmtime,getatime,getctime,realpath,samefile} "
            "shutil.{copy,copy2,copyfile,copytree,copymode,copystat,move,rmtree,disk_usage,make_archive,unpack_archive} "
            "glob.{glob,iglob} fileinput.input linecache.getline "
            "tempfile.{TemporaryFile,NamedTemporaryFile,SpooledTemporaryFile,TemporaryDirectory,mkstemp,mkdtemp,mktemp} "
            "aiofiles.open anyio.open_file zipfile.ZipFile tarfile.open gzip.open bz2.open lzma.open shelve.open dbm.open"
        ),
    ),
    (
        _NETWORK,
        (
            f"requests.{_HTTP} requests.Session.{_HTTP} requests.session.{_HTTP} httpx.{_HTTP} httpx.Client.{_HTTP} "
            f"httpx.AsyncClient.{_HTTP} aiohttp.request aiohttp.ClientSession.{_HTTP} urllib3.request "
            f"urllib3.PoolManager.{_HTTP} urllib.request.{{urlopen,urlretrieve}} "
            "socket.{socket,create_connection,create_server,getaddrinfo,gethostbyname,gethostbyaddr,socketpair} "
            "http.client.HTTPConnection.{connect,request,getresponse} "
            "http.client.HTTPSConnection.{connect,request,getresponse} "
            "smtplib.{SMTP,SMTP_SSL,LMTP} ftplib.{FTP,FTP_TLS} imaplib.{IMAP4,IMAP4_SSL} poplib.{POP3,POP3_SSL} "
            "asyncio.{open_connection,open_unix_connection,start_server,start_unix_server} "
            "anyio.{connect_tcp,connect_unix,create_tcp_listener} "
            "asyncio.AbstractEventLoop.{create_connection,create_server,create_unix_connection,create_unix_server,"
            "create_datagram_endpoint,connect_accepted_socket,getaddrinfo,getnameinfo,sock_recv,sock_recv_into,sock_sendall,"
            "sock_connect,sock_accept,sock_sendfile,sendfile,start_tls,add_reader,add_writer,connect_read_pipe,"
            "connect_write_pipe} "
            "sqlite3.connect apsw.Connection aiosqlite.connect psycopg.connect psycopg.AsyncConnection.connect "
            "psycopg.Connection.connect psycopg2.connect asyncpg.{connect,create_pool} pymysql.connect MySQLdb.connect "
            "mysql.connector.connect aiomysql.{connect,create_pool} asyncmy.{connect,create_pool} pyodbc.connect "
            "duckdb.connect redis.Redis.* redis.StrictRedis.* redis.from_url.* redis.asyncio.Redis.* "
            "redis.asyncio.from_url.* pymongo.MongoClient.* boto3.client.* pika.BlockingConnection paramiko.SSHClient.connect"
        ),
    ),
    (_SLEEP, "time.sleep"),
    (
        _OFFLOAD,
        (
            "asyncio.to_thread asyncio.AbstractEventLoop.run_in_executor anyio.to_thread.run_sync "
            "anyio.to_process.run_sync starlette.concurrency.run_in_threadpool fastapi.concurrency.run_in_threadpool "
            "asgiref.sync.sync_to_async asyncio.run_coroutine_threadsafe"
        ),
    ),
    (
        _THREAD,
        (
            "threading.{Thread,Timer} _thread.start_new_thread multiprocessing.{Process,Pool,Manager,Queue,Pipe} "
            "concurrent.futures.{ThreadPoolExecutor,ProcessPoolExecutor,InterpreterPoolExecutor,wait,as_completed} "
            "multiprocessing.pool.{Pool,ThreadPool} joblib.Parallel"
        ),
    ),
    (
        _LOCK,
        (
            "threading.Lock.acquire threading.RLock.acquire threading.Semaphore.acquire threading.BoundedSemaphore.acquire "
            "threading.Condition.{acquire,wait,wait_for} threading.Event.wait threading.Barrier.wait queue.Queue.{get,put,join} "
            "queue.SimpleQueue.{get,put} queue.LifoQueue.{get,put,join} queue.PriorityQueue.{get,put,join}"
        ),
    ),
    (
        _PROCESS,
        (
            "subprocess.{run,Popen,call,check_call,check_output,getoutput,getstatusoutput} "
            "os.{system,popen,fork,forkpty,kill,killpg,posix_spawn,posix_spawnp,execv,execve,execvp,execvpe,execl,execle,execlp,"
            "spawnl,spawnv,spawnve,spawnvp,startfile,wait,waitpid,_exit} signal.{signal,alarm,setitimer,raise_signal} "
            "asyncio.{create_subprocess_exec,create_subprocess_shell} anyio.{run_process,open_process} "
            "asyncio.AbstractEventLoop.{subprocess_exec,subprocess_shell,add_signal_handler}"
        ),
    ),
    (_RUN, "asyncio.{run,Runner.run} asyncio.AbstractEventLoop.{run_until_complete,run_forever} anyio.run trio.run"),
    (
        _PRINT,
        (
            "builtins.print pprint.{pprint,pp} rich.{print,inspect} rich.console.Console.{print,log} click.{echo,secho} "
            "sys.stdout.{write,writelines} sys.stderr.{write,writelines} traceback.{print_exc,print_stack,print_exception} "
            "builtins.breakpoint"
        ),
    ),
    (
        _LOG,
        (
            f"logging.{_LEVELS} logging.Logger.{_LEVELS} logging.LoggerAdapter.{_LEVELS} loguru.logger.{_LEVELS} "
            "loguru.logger.{trace,success}"
        ),
    ),
]

_READS: Final[list[tuple[Known, str]]] = [
    (_ENVIRONMENT, "os.{environ,environb} sys.argv"),
    (_FILE, "sys.stdin"),
]

BLOCKING_LOCKS: Final = frozenset(names("threading.{Lock,RLock,Semaphore,BoundedSemaphore,Condition}"))
LOCK: Final = _LOCK
PRINTS: Final = frozenset({_PRINT.code, _LOG.code})


def _table(rows: list[tuple[Known, str]]) -> Iterator[tuple[str, Known]]:
    for known, text in rows:
        yield from ((name, known) for name in names(text))


_CALLED: Final = dict(_table(_CALLS))
READ: Final = dict(_table(_READS))


def called(name: str) -> Known | None:
    """What is said about a call of this name."""
    return _CALLED.get(name) or _CALLED.get(name.rpartition(".")[0] + ".*")
