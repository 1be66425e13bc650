# ---
# jupyter:
#   lesson:
#     minutes: 50
# ---

# %% [markdown] name="title"
# # Ejercicio 2: implementación de un sistema de cache
#
# **50 minutos.** Repara, pieza por pieza, el cache del curso.
#
# **Objetivos**
#
# - Configurar Redis para caching
# - Implementar diferentes estrategias de cache
# - Medir el impacto en el rendimiento
# - Gestionar la invalidación del cache
#
# **Requisitos:** decoradores de Python y el cuaderno `00_start`
#
# **Criterios de evaluación**
#
# - [ ] Configuraste Redis correctamente
# - [ ] Implementaste decoradores de cache
# - [ ] Aplicaste cache a endpoints apropiados
# - [ ] Implementaste invalidación de cache
# - [ ] Documentaste mejoras de rendimiento (hit rate >70 %)

# %% name="setup" tags=["setup"]
from labkit import Lab, zipf
from labkit.blog import create_app
from labkit.cache import CacheAside, EarlyRefresh, StaleWhileRevalidate, writes
from labkit.cache import cached as shipped
from labkit.course import open_lesson
from labkit.course.traffic import Strategies, standard_traffic, strategies
from labkit.errors import CacheError
from labkit.load import side_by_side

lab = Lab(create_app(), redis=True)
lesson = open_lesson("02_cache", language="es", lab=lab)
lesson

# %% [markdown] name="predict-text"
# ## ¿Cuánto vale un cache?
#
# `/users/{id}` lee la base de datos en cada petición; `/cached/users/{id}` guarda su respuesta en Redis. Llegan 2.000
# peticiones, repartidas entre 300 usuarios: unos pocos muy visitados y la mayoría casi nunca (ley de Zipf). ¿Qué
# porcentaje responderá el cache (su **hit rate**)? ¿Cuántas veces más rápido será, en la mediana? Cambia los números
# por tu predicción.

# %% name="predict" tags=["predict"]
lesson.predict("1", hit_rate=50, ratio=100)

# %% name="first-figure" tags=["measure"]
options = {"ids": zipf(300), "requests": 2_000, "concurrency": 1}
plain, good = (lab.load(path, **options) for path in ("/users/{id}", "/cached/users/{id}"))
first = lesson.keep("first", side_by_side({"/users": plain, "/cached/users": good}))
ratio = plain.percentiles["p50"] / good.percentiles["p50"]
display(first.plot(), lesson.actual("1", hit_rate=100 * good.hit_rate, ratio=ratio))

# %% [markdown] name="monitor-text"
# **¿Por qué no llega al 100 %, si en Redis sobra espacio?**
#
# Ese cache ya está bien hecho. Abajo se borra la respuesta del usuario 7 y se pide dos veces; la tabla es lo que recibe
# Redis, como en `redis-cli monitor`. La primera petición no encuentra nada, calcula y guarda con scripts (`EVALSHA`);
# la segunda solo lee. `X-Cache` dice si fue un acierto (`HIT`) o un fallo (`MISS`); `TTL`, cuántos segundos de vida le
# quedan a la clave.

# %% name="monitor" tags=["measure"]
lab.delete("/cached/cache/user/7")
with lab.redis.monitor() as seen:
    replies = [lab.get("/cached/users/7") for _ in range(2)]
sent = seen.df.query("client != 'lua'")[["command", "key"]]
display(sent, [reply.headers["x-cache"] for reply in replies])
lab.redis.command("TTL", sent["key"].iloc[0])

# %% [markdown] name="worth-text"
# **¿Cuántos comandos necesita un acierto?**
#
# ## Ejercicio 2.1: qué merece un cache
#
# Dificultad: baja · Importancia: alta · **4 minutos**
#
# La tabla trae el costo, que se mide aquí, y un minuto normal: cuántas veces se pide cada respuesta, cuántas cambia y
# si es personal. La función elige la ruta más lenta. Corrígela: que elija todas las que un cache compartido puede
# servir y en las que ahorra al menos 100 ms de trabajo por minuto.

# %% name="imports" tags=["setup"]
import asyncio
import hashlib
import inspect
import json
from functools import wraps

import pandas as pd
import redis
from fastapi import APIRouter, Cookie, Depends, HTTPException
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labkit.blog import Comment, Post, User, get_db

router = APIRouter(prefix="/cached", tags=["cached"])


# %% name="endpoints" tags=["measure"]
@lab.app.get("/me/drafts")
def my_drafts(user_id: int = Cookie(7), db: Session = Depends(get_db)):
    return db.query(Post).filter_by(author_id=user_id).count()


columns = ["path", "cost_ms", "requests_per_min", "changes_per_min", "personal"]
seen = {
    "/users/7": (600, 0.1, False),
    "/posts/latest": (900, 6, False),
    "/stats/global": (120, 9, False),
    "/me/drafts": (300, 0.5, True),
    "/performance/slow-endpoint": (0.1, 6, False),
}
rows = [(path, round(1_000 * lab.get(path).elapsed, 1), *counts) for path, counts in seen.items()]
display(endpoints := pd.DataFrame(rows, columns=columns))


# %% name="worth" tags=["exercise"] exercise="2.1" file="cache/cached_endpoints.py" minutes=4
# starter
def worth_caching(endpoints):
    slowest = endpoints.sort_values("cost_ms").iloc[-1]
    return [slowest["path"]]


# solution
def worth_caching(endpoints):
    """The paths whose answers may be shared, where a cache saves 100 ms of work a minute or more."""
    hits = endpoints["requests_per_min"] - endpoints["changes_per_min"]
    worth = (hits * endpoints["cost_ms"] >= 100) & ~endpoints["personal"].astype(bool)
    return list(endpoints.loc[worth, "path"])


# end

# %% name="worth-check" tags=["check"]
display(worth_caching(endpoints), lesson.check("2.1", worth_caching))

# %% [markdown] name="naive-text"
# ## El cache del curso, por dentro
#
# Un cliente, un decorador y piezas pequeñas. Todo corre, y casi todo está mal. El decorador busca cada pieza por su
# nombre en cada llamada: cuando vuelvas a declarar una en un ejercicio, usará la tuya.


# %% name="client" tags=["setup"]
class CacheClient:
    def __init__(self, redis_url=lab.redis.url):
        self.client = redis.from_url(redis_url, socket_timeout=0.2, socket_connect_timeout=0.2, retry=None)

    def get(self, key):
        return json.loads(self.client.get(key) or "null")

    def set(self, key, value, ttl=300):
        return self.client.set(key, json.dumps(value), ex=ttl)

    def delete(self, key):
        return self.client.delete(key) > 0


cache_client = CacheClient()


# %% name="decorator" tags=["setup"] file="cache/decorators.py"
def cached(ttl=300, key_prefix=""):
    def decorator(func):
        @wraps(func)
        async def wrapper(*args, **kwargs):
            key = generate_cache_key(func, args, kwargs, key_prefix)
            if (found := cache_client.get(key)) is None:
                found = await run_once(key, lambda: fill(key, func(*args, **kwargs), ttl))
            return found

        wrapper.invalidate = lambda *a, **k: cache_client.delete(
            generate_cache_key(func, a, k, key_prefix)
        )
        return wrapper

    return decorator


# %% name="naive" tags=["setup"]
async def fill(key, running, ttl):
    """Wait for an answer and store it."""
    cache_client.set(key, result := await running, ttl)
    return result


def generate_cache_key(func, args, kwargs, prefix=""):
    """Name the answer to these arguments."""
    text = ":".join([func.__name__, *map(str, args[1:]), *key_parts(kwargs)])
    return f"{prefix}:{hashlib.md5(text.encode()).hexdigest()}"


async def run_once(key, run):
    """Compute an answer."""
    return await run()


# %% name="users" tags=["setup"]
@router.get("/users/{user_id}")
@cached(ttl=600, key_prefix="user")
async def get_user_cached(user_id: int, db: Session = Depends(get_db)):
    user = db.get(User, user_id)
    if user is None:
        return {"error": "User not found"}
    return {"id": user.id, "username": user.username, "email": user.email, "cached": False}


lab.app.include_router(router)

# %% [markdown] name="parts-text"
# ## Ejercicio 2.2: la misma pregunta, la misma clave
#
# Dificultad: media · Importancia: alta · **7 minutos**
#
# `key_parts` arma la clave con los argumentos del endpoint. Uno de ellos es distinto en cada petición y no dice nada de
# lo que se pregunta. Corre la celda y la que sigue: dos peticiones iguales, ¿cuántas claves? Corrígela.


# %% name="parts" tags=["exercise"] exercise="2.2" file="cache/decorators.py" minutes=7
# starter
def key_parts(arguments):
    return [f"{name}:{value}" for name, value in sorted(arguments.items())]


# solution
def key_parts(arguments):
    """What tells one question from another: names and values, without the session of the request."""
    kept = {name: value for name, value in arguments.items() if not isinstance(value, Session)}
    return [f"{name}:{value!r}" for name, value in sorted(kept.items())]


# end

# %% name="parts-check" tags=["check"]
with lab.redis.monitor() as seen:
    lab.get("/cached/users/7")
    lab.get("/cached/users/7")
display(seen, lesson.check("2.2", key_parts))

# %% [markdown] name="key-text"
# ## Ejercicio 2.3: leer e invalidar con la misma clave
#
# Dificultad: alta · Importancia: alta · **7 minutos**
#
# `args[1:]` se salta el primer argumento, que aquí no es `self` sino el usuario. Y quien actualiza un usuario llama a
# `get_user_cached.invalidate(user_id, None)`: por posición y sin sesión. ¿Da la misma clave que la lectura? Corrige la
# función: una clave por pregunta, se haga como se haga.


# %% name="key" tags=["exercise"] exercise="2.3" file="cache/decorators.py" minutes=7
# starter
def generate_cache_key(func, args, kwargs, prefix=""):
    text = ":".join([func.__name__, *map(str, args[1:]), *key_parts(kwargs)])
    return f"{prefix}:{hashlib.md5(text.encode()).hexdigest()}"


# solution
def generate_cache_key(func, args, kwargs, prefix=""):
    """One key for a question, by position, by name or with defaults; the session is no part of it."""
    signature = inspect.signature(func, eval_str=True)
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    sessions = {
        name for name, parameter in signature.parameters.items() if parameter.annotation is Session
    }
    asked = {name: value for name, value in bound.arguments.items() if name not in sessions}
    text = ":".join([func.__module__, func.__qualname__, *key_parts(asked)])
    return f"{prefix}:{hashlib.md5(text.encode()).hexdigest()}"


# end

# %% name="key-check" tags=["check"]
lesson.check("2.3", generate_cache_key)

# %% [markdown] name="answers-text"
# ## Ejercicio 2.4: un error no es una respuesta
#
# Dificultad: baja · Importancia: alta · **5 minutos**
#
# Pide un usuario que no existe: responde 200, y ese «no existe» queda guardado diez minutos, aunque el usuario se
# registre un segundo después. Además, cada acierto dice `"cached": false`, porque devuelve la copia de la primera vez;
# eso va en un encabezado, como `X-Cache`. Corrige las dos cosas en `get_user_cached`.


# %% name="answers" tags=["exercise"] exercise="2.4" file="cache/cached_endpoints.py" minutes=5
# starter
@router.get("/users/{user_id}")
@cached(ttl=600, key_prefix="user")
async def get_user_cached(user_id: int, db: Session = Depends(get_db)):
    user = db.get(User, user_id)
    if user is None:
        return {"error": "User not found"}
    return {"id": user.id, "username": user.username, "email": user.email, "cached": False}


# solution
@router.get("/users/{user_id}")
@cached(ttl=600, key_prefix="user")
async def get_user_cached(user_id: int, db: Session = Depends(get_db)):
    """One user; who does not exist is an error, and never stored."""
    user = db.get(User, user_id)
    if user is None:
        raise HTTPException(404, "User not found")
    return {"id": user.id, "username": user.username, "email": user.email}


# end
@router.get("/stats/global")
@cached(ttl=900, key_prefix="stats")
async def get_global_stats(db: Session = Depends(get_db)):
    """How many there are of each."""
    tables = {"total_users": User, "total_posts": Post, "total_comments": Comment}
    return {name: db.scalar(select(func.count(table.id))) for name, table in tables.items()}


@router.delete("/cache/user/{user_id}")
async def invalidate_user_cache(user_id: int):
    """Forget one user's answer."""
    return {"user_id": user_id, "deleted": get_user_cached.invalidate(user_id, None)}


# %% name="answers-check" tags=["check"]
display([lab.get("/cached/users/999999").status for _ in range(2)], lesson.check("2.4", get_user_cached))

# %% [markdown] name="once-text"
# ## Ejercicio 2.5: la estampida
#
# Dificultad: alta · Importancia: alta · **7 minutos**
#
# Vence la clave más visitada y llegan 50 peticiones a la vez. Ninguna la encuentra y las 50 calculan lo mismo.
# `run_once(key, run)` recibe la clave y la función que calcula y guarda. Corrígela: un solo cálculo por clave, y las
# demás peticiones esperan su resultado. Claves distintas no se esperan entre sí, y un error no se guarda.


# %% name="once" tags=["exercise"] exercise="2.5" file="cache/decorators.py" minutes=7
# starter
async def run_once(key, run):
    return await run()


# solution
under_way = {}


async def run_once(key, run):
    """One run a key at a time: whoever comes meanwhile gets its answer, also if the first one has left."""
    if key not in under_way:
        under_way[key] = asyncio.ensure_future(run())
        under_way[key].add_done_callback(lambda task: under_way.pop(key, None))
    return await asyncio.shield(under_way[key])


# end

# %% name="once-check" tags=["check"]
lesson.check("2.5", run_once)

# %% [markdown] name="down-text"
# ## Ejercicio 2.6: Redis no está
#
# Dificultad: media · Importancia: alta · **5 minutos**
#
# Un cache es una mejora, no un requisito. Abajo se apaga Redis, y luego se congela: la conexión sigue abierta y nadie
# contesta. Todas las peticiones fallan, aunque la base de datos esté bien. Corrige el cliente: sin Redis, `get` no
# encuentra nada, `set` y `delete` no hacen nada, y quien visita no lo nota.


# %% name="down" tags=["exercise"] exercise="2.6" file="cache/redis_setup.py" minutes=5
# starter
class CacheClient:
    def __init__(self, redis_url=lab.redis.url):
        self.client = redis.from_url(redis_url, socket_timeout=0.2, socket_connect_timeout=0.2, retry=None)

    def get(self, key):
        return json.loads(self.client.get(key) or "null")

    def set(self, key, value, ttl=300):
        return self.client.set(key, json.dumps(value), ex=ttl)

    def delete(self, key):
        return self.client.delete(key) > 0


# solution
class CacheClient:
    """Values in Redis as JSON; where Redis does not answer within 200 ms there is nothing in it."""

    def __init__(self, redis_url=lab.redis.url):
        self.client = redis.from_url(redis_url, socket_timeout=0.2, socket_connect_timeout=0.2, retry=None)

    def get(self, key):
        """The value, or None."""
        return json.loads(self._ask("get", key) or "null")

    def set(self, key, value, ttl=300):
        """Store a value for so many seconds; whether that worked."""
        return bool(self._ask("set", key, json.dumps(value), ex=ttl))

    def delete(self, key):
        """Forget a value; whether there was one."""
        return bool(self._ask("delete", key))

    def _ask(self, command, *words, **options):
        try:
            return getattr(self.client, command)(*words, **options)
        except redis.RedisError:
            return None


# end
cache_client = CacheClient()

# %% name="down-check" tags=["check"]
for fault in ("redis_down", "redis_frozen"):
    with lab.fault(fault):
        print(fault, [lab.get("/cached/users/7").status for _ in range(5)])
display(lab.switchboard(), lesson.check("2.6", CacheClient))

# %% [markdown] name="traffic-text"
# ## ¿Cuánto vale el tuyo?
#
# Los botones rompen Redis de verdad: pruébalos mientras corre una celda.
#
# Tu decorador recibe ahora el tráfico estándar: 2.000 peticiones entre 300 usuarios y una actualización cada 100. Una
# respuesta obsoleta (anterior al último cambio) o ajena (de otro usuario) cuenta como fallo. ¿Qué hit rate tendrá? Al
# lado, el mismo tráfico con las estrategias de `labkit` y un TTL de medio segundo.

# %% name="traffic-predict" tags=["predict"]
lesson.predict("2", hit_rate=70)

# %% name="traffic" tags=["measure"]
mine = cached(ttl=60, key_prefix="traffic")
traffic = lesson.keep("traffic", standard_traffic(lab, mine, name="cached"))
kinds = {
    "aside": CacheAside(),
    "stale": StaleWhileRevalidate(window=60),
    "early": EarlyRefresh(beta=3),
}
client = lab.app.state.cache
caches = {n: shipped(ttl=0.5, key_prefix=n, client=client, strategy=kinds[n]) for n in kinds}
found = strategies(lab, caches)
through = {"writer": lambda read, write: writes(to=read)(write), "name": "write"}
found = Strategies((traffic, *found.results, standard_traffic(lab, caches["aside"], **through)))
display(lesson.keep("strategies", found).plot(), lesson.actual("2", hit_rate=100 * traffic.hit_rate))

# %% [markdown] name="strategies-text"
# **De lo que falta para el 100 %, ¿qué parte no puede ganar ningún cache?**
#
# - `aside` (cache-aside): la clave vence y alguien espera
# - `stale` (stale-while-revalidate): se sirve el valor vencido mientras se calcula el nuevo
# - `early` (early refresh): se recalcula un poco antes de vencer
# - `write` (write-through): quien escribe deja el valor nuevo en el cache
#
# Ahora mide la espera: un endpoint que tarda 50 ms, con 200 peticiones por segundo.

# %% name="waiting" tags=["measure"]
for name, cache in caches.items():

    @lab.app.get(f"/{name}/{{user_id}}")
    @cache
    async def slow_user(user_id: int) -> dict[str, int]:
        await asyncio.sleep(0.05)
        return {"id": user_id}


loads = {}
for name in caches:
    lab.load(f"/{name}/{{id}}", ids=range(1, 6), requests=5)
    loads[name] = lab.load(f"/{name}/{{id}}", ids=zipf(5), rate=200, seconds=4)
lesson.keep("waiting", side_by_side(loads)).plot()

# %% [markdown] name="report-text"
# **¿Cuál elegirías para un contador de visitas? ¿Y para un precio?**
#
# ## Tu reporte
#
# El reporte se escribe con lo que mediste, y tu código va al lado. Falta tu interpretación: cuenta qué
# reparación subió más el hit rate, y qué estrategia usarías y dónde.
#
# **Más allá**, fuera de los 50 minutos: la última celda pone un objeto en la clave. De 500 personas, ¿cuántas reciben
# los datos de otra? El decorador de `labkit` se niega, y dice por qué.

# %% name="report" tags=["reflect"]
display(lesson.calibration(), lesson.report())


# %% name="beyond" tags=["measure"]
class Viewer:
    def __init__(self, user_id):
        self.user_id = user_id


async def my_page(viewer: Viewer):
    return {"id": viewer.user_id}


page = cached(ttl=60, key_prefix="page")(my_page)
print(sum([(await page(viewer=Viewer(n)))["id"] != n for n in range(500)]))
try:
    await shipped(client=client)(my_page)(Viewer(1))
except CacheError as error:
    print(error)
