# ---
# jupyter:
#   lesson:
#     gallery: true
# ---

# %% [markdown] name="title"
# # Galería de trampas
#
# Aquí están las trampas que no caben en las lecciones: código que parece correcto. No hay orden ni límite de tiempo.
# Ejecuta la primera celda y los `import` de un ejercicio. Lee una ficha, cambia `guess` por **tu predicción** y
# ejecútala: mide la trampa y su cura en tu máquina. Después cambia el código y repite.

# %% name="setup" tags=["setup"]
from labkit import Lab
from labkit.blog import Comment, Post, User, create_app, get_db
from labkit.course.gallery import open_gallery

lab = Lab(create_app(), redis=True)
gallery = open_gallery("08_trap_gallery", language="es", lab=lab)
gallery

# %% name="imports-1" tags=["setup"]
import asyncio
import cProfile
import inspect
import io
import pstats
import sys
import time
from functools import wraps

from fastapi import Depends
from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from labkit.profiling import profile_endpoint

# %% name="map" tags=["measure"]
gallery.map()

# %% [markdown] name="exercise-1"
# ## Ejercicio 1: rendimiento

# %% [markdown] name="T03-text"
# ### T03 · ¿Diez perfiles a la vez?
#
# Este decorador ya apaga el profiler cuando el endpoint falla. Llegan diez peticiones a la vez, y cada una trabaja y
# espera por turnos. ¿Cuántos de los diez perfiles contienen sus propias llamadas y ninguna ajena?


# %% name="T03" tags=["trap"]
# starter
def profiled(func, report):
    @wraps(func)
    async def wrapper():
        profiler = cProfile.Profile()
        profiler.enable()
        try:
            return await func()
        finally:
            profiler.disable()
            report({name: calls for (_, _, name), (calls, *_) in pstats.Stats(profiler).stats.items()})

    return wrapper


# solution
def profiled(func, report):
    def told(profile):
        report({function.name: function.calls for function in profile.functions})

    return profile_endpoint(func, on_report=told)


# end
gallery.card("T03", profiled, guess=10)

# %% [markdown] name="T05-text"
# ### T05 · ¿Cuánto tarda de verdad?
#
# El decorador del curso lee el reloj con el profiler encendido. ¿Por cuánto multiplica el tiempo real?


# %% name="T05" tags=["trap"]
# starter
def timed(func):
    profiler = cProfile.Profile()
    profiler.enable()
    start = time.time()
    func()
    elapsed = time.time() - start
    profiler.disable()
    return elapsed


# solution
def timed(func):
    start = time.perf_counter()
    func()
    elapsed = time.perf_counter() - start
    cProfile.Profile().runcall(func)
    return elapsed


# end
gallery.card("T05", timed, guess=1)

# %% [markdown] name="T08-text"
# ### T08 · ¿Basta con escribir async?
#
# El endpoint pregunta a la base de datos cuántas veces los comentarios mencionan a los usuarios 1 a 100. El bucle de
# eventos (*event loop*), que atiende a todos, late cada 10 ms si está libre. ¿Cuántas veces late durante la consulta?


# %% name="T08" tags=["trap"]
named = Comment.body.contains(User.username)
mentioned = select(func.count(User.id)).join(Comment, named).where(User.id <= 100)


# starter
async def mentions(db: Session = Depends(get_db)):
    return {"mentions": db.scalar(mentioned)}


# solution
def mentions(db: Session = Depends(get_db)):
    return {"mentions": db.scalar(mentioned)}


# end
gallery.card("T08", mentions, guess=20)

# %% [markdown] name="T12-text"
# ### T12 · ¿La misma primera página?
#
# El endpoint lento y el rápido piden los primeros 50 usuarios a PostgreSQL. ¿Cuántos tienen en común sus respuestas?


# %% name="T12" tags=["trap"]
# starter
def slow(db):
    return db.query(User.id).limit(50).all()


def fast(db):
    posts = func.count(Post.id)
    found = db.query(User.id, posts).outerjoin(User.posts).group_by(User.id)
    return found.limit(50).all()


# solution
def slow(db):
    return db.query(User.id).order_by(User.id).limit(50).all()


def fast(db):
    posts = func.count(Post.id)
    found = db.query(User.id, posts).outerjoin(User.posts).group_by(User.id)
    return found.order_by(User.id).limit(50).all()


# end
gallery.card("T12", slow, fast, guess=50)

# %% [markdown] name="T13-text"
# ### T13 · ¿Qué viaja desde la base de datos?
#
# El endpoint rápido necesita tres columnas de 1.000 publicaciones. ¿Cuántos valores (filas × columnas) lee?


# %% name="T13" tags=["trap"]
# starter
def posts(db):
    found = db.query(Post).options(joinedload(Post.author)).filter(Post.author_id <= 50)
    return [(post.author_id, post.id, post.title) for post in found]


# solution
def posts(db):
    return db.execute(select(Post.author_id, Post.id, Post.title).where(Post.author_id <= 50)).all()


# end
gallery.card("T13", posts, guess=3_000)

# %% [markdown] name="T14-text"
# ### T14 · ¿Es lento Query.count()?
#
# Se repite en muchos artículos: `Query.count()` es lento en la base de datos; usa `select(func.count())`. ¿Cuántas
# veces lo que cuesta el segundo le cuesta el primero a la base de datos?


# %% name="T14" tags=["trap"]
# starter
def count(db):
    return db.query(Comment).filter(Comment.author_id <= 100).count()


# solution
def count(db):
    return db.scalar(select(func.count()).where(Comment.author_id <= 100))


# end
gallery.card("T14", count, guess=5)

# %% [markdown] name="T16-text"
# ### T16 · ¿Agrupar a todos para mostrar 50?
#
# Otra creencia: `GROUP BY` antes de `LIMIT` agrupa a los 300 usuarios y descarta 250. ¿Por cuánto multiplica los pasos
# que da la base de datos si se limita primero?


# %% name="T16" tags=["trap"]
# starter
def page(db):
    posts = func.count(Post.id)
    found = select(User.id, posts).outerjoin(User.posts).group_by(User.id)
    return db.execute(found.order_by(User.id).limit(50)).all()


# solution
def page(db):
    first = select(User.id).order_by(User.id).limit(50).subquery()
    posts = func.count(Post.id)
    found = select(first.c.id, posts).outerjoin(Post, Post.author_id == first.c.id)
    return db.execute(found.group_by(first.c.id).order_by(first.c.id)).all()


# end
gallery.card("T16", page, guess=6)

# %% [markdown] name="T17-text"
# ### T17 · ¿Sirve el decorador para todos?
#
# Cinco peticiones llegan a un endpoint `async def` y cinco a un endpoint `def`, ambos decorados. ¿Cuántas fallan?


# %% name="T17" tags=["trap"]
# starter
def counted(func, calls):
    @wraps(func)
    async def wrapper(*args, **kwargs):
        calls[func.__name__] += 1
        return await func(*args, **kwargs)

    return wrapper


# solution
def counted(func, calls):
    async def waiting(*args, **kwargs):
        calls[func.__name__] += 1
        return await func(*args, **kwargs)

    def plain(*args, **kwargs):
        calls[func.__name__] += 1
        return func(*args, **kwargs)

    return wraps(func)(waiting if inspect.iscoroutinefunction(func) else plain)


# end
gallery.card("T17", counted, guess=0)

# %% [markdown] name="T18-text"
# ### T18 · ¿De quién son estas llamadas?
#
# Mientras perfilas tu función, otro hilo del servidor hace 200 llamadas para otra petición. ¿Cuántas aparecen en tu
# perfil? Depende de la versión de Python.


# %% name="T18" tags=["trap"]
# starter
def calls_of(func):
    profiler = cProfile.Profile()
    profiler.runcall(func)
    stats = pstats.Stats(profiler).stats
    return {name: calls for (_, _, name), (calls, *_) in stats.items()}


# solution
def calls_of(func):
    seen = []

    def note(frame, event, arg):
        seen.append(event == "call" and frame.f_code.co_name)

    sys.setprofile(note)
    try:
        func()
    finally:
        sys.setprofile(None)
    return {name: seen.count(name) for name in set(seen)}


# end
gallery.card("T18", calls_of, guess=0)

# %% [markdown] name="T19-text"
# ### T19 · ¿Puede una petición durar menos que nada?
#
# El trabajo dura 10 ms. Mientras corre, alguien atrasa el reloj dos segundos. ¿Cuántos segundos informa el cronómetro?


# %% name="T19" tags=["trap"]
# starter
def seconds(work):
    start = time.time()
    work()
    return time.time() - start


# solution
def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# end
gallery.card("T19", seconds, guess=0.01)

# %% [markdown] name="T21-text"
# ### T21 · ¿Qué hace una conexión mientras esperas?
#
# El endpoint pregunta a la base de datos y después espera a otro servicio. El pool tiene tres conexiones y llegan
# nueve peticiones a la vez. ¿Cuántas fallan?


# %% name="T21" tags=["trap"]
# starter
async def summary(db: Session = Depends(get_db)):
    posts = db.scalar(select(func.count()).select_from(Post))
    await asyncio.sleep(0.05)
    return {"posts": posts}


# solution
async def summary(db: Session = Depends(get_db)):
    posts = db.scalar(select(func.count()).select_from(Post))
    db.close()
    await asyncio.sleep(0.05)
    return {"posts": posts}


# end
gallery.card("T21", summary, guess=0)

# %% [markdown] name="T59-text"
# ### T59 · ¿Quién lee el reporte?
#
# Así termina el decorador del curso. En cada petición, ¿cuántos caracteres formatea que nadie llega a ver?


# %% name="T59" tags=["trap"]
# starter
def report(profiler):
    stream = io.StringIO()
    stats = pstats.Stats(profiler, stream=stream).sort_stats("cumulative")
    stats.print_stats()
    print("Top 10 functions by cumulative time:")
    stats.print_stats(10)


# solution
def report(profiler):
    stream = io.StringIO()
    stats = pstats.Stats(profiler, stream=stream).sort_stats("cumulative")
    stats.print_stats(10)
    print(stream.getvalue())


# end
gallery.card("T59", report, guess=1_000)

# %% [markdown] name="T60-text"
# ### T60 · ¿Cuántos usuarios hay?
#
# La respuesta trae la primera página y el total, para que el cliente sepa cuántas páginas pedir. Hay 300 usuarios.
# ¿Qué dice `total`?


# %% name="T60" tags=["trap"]
# starter
def page(db):
    users = db.query(User.id, User.username).order_by(User.id).limit(50).all()
    return {"users": users, "total": len(users)}


# solution
def page(db):
    users = db.query(User.id, User.username).order_by(User.id).limit(50).all()
    return {"users": users, "total": db.scalar(select(func.count()).select_from(User))}


# end
gallery.card("T60", page, guess=300)

# %% [markdown] name="T63-text"
# ### T63 · ¿La cura de todo N+1?
#
# Los libros curan el N+1 con *eager loading*: cargar todo por adelantado. Aquí hay 50 publicaciones con 100 comentarios
# cada una, y solo hace falta contarlos. ¿Cuántos valores (filas × columnas) lee?


# %% name="T63" tags=["trap"]
# starter
def comments(db):
    everything = selectinload(User.posts).selectinload(Post.comments)
    users = db.scalars(select(User).options(everything)).all()
    return {post.id: len(post.comments) for user in users for post in user.posts}


# solution
def comments(db):
    counts = select(Post.id, func.count(Comment.id)).outerjoin(Post.comments).group_by(Post.id)
    return dict(db.execute(counts).all())


# end
gallery.card("T63", comments, guess=50)

# %% [markdown] name="exercise-2"
# ## Ejercicio 2: cache

# %% name="imports-2" tags=["setup"]
import asyncio
import json
import time

import redis
from fastapi import Depends, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labkit.blog import Comment, get_db
from labkit.cache import CacheClient, cached

store = redis.from_url(lab.redis.url)
client = CacheClient(lab.redis.url, timeout=1)

# %% [markdown] name="T24-text"
# ### T24 · ¿Un acierto o un golpe de suerte?
#
# Aquí la clave lleva la sesión de la base de datos, que es nueva en cada petición. El usuario 7 cambia de nombre 60
# veces. Después de cada cambio se invalida la copia y alguien lo lee. ¿Cuántas lecturas devuelven un nombre viejo?


# %% name="T24" tags=["trap"]
# starter
copies = {}


def read(user_id, db):
    if (key := f"user:{user_id}:{db}") not in copies:
        copies[key] = db.get(User, user_id).username
    return copies[key]


def forget(user_id):
    copies.pop(f"user:{user_id}:None", None)


# solution
@cached(ttl=60, key_prefix="t24", client=client)
def read(user_id: int, db: Session):
    return db.get(User, user_id).username


def forget(user_id):
    read.invalidate(user_id)


# end
gallery.card("T24", read, forget, guess=0)

# %% [markdown] name="T27-text"
# ### T27 · ¿Dos preguntas, dos claves?
#
# La clave une con dos puntos el nombre de la función y sus argumentos. Hay seis parejas de preguntas distintas, como
# `1` y `"1"`. ¿Cuántas parejas comparten la clave?


# %% name="T27" tags=["trap"]
# starter
def make_key(function, *args):
    return ":".join([function.__name__, *map(str, args)])


# solution
def make_key(function, *args):
    return cached(client=client)(function).key(*args)


# end
gallery.card("T27", make_key, guess=0)

# %% [markdown] name="T28-text"
# ### T28 · Seis procesos, ¿un solo cache?
#
# Seis procesos de Python comparten un Redis y piden lo mismo: las publicaciones con `status="active"`. ¿Cuántas claves
# distintas forman?


# %% name="T28" tags=["trap"]
# starter
def posts_key(filters):
    return f"posts:{hash(str(filters))}"


# solution
def posts_key(filters):
    from hashlib import blake2b

    text = json.dumps(filters, sort_keys=True)
    return f"posts:{blake2b(text.encode(), digest_size=10).hexdigest()}"


# end
gallery.card("T28", posts_key, guess=1)

# %% [markdown] name="T29-text"
# ### T29 · ¿Vuelve lo mismo que se guardó?
#
# `default=str` hace que `json.dumps` acepte cualquier cosa. Se guardan seis valores: un `dict` con claves `int`, una
# tupla, un `datetime`, un `Decimal`, un `set` y unos `bytes`. ¿Cuántos vuelven cambiados?


# %% name="T29" tags=["trap"]
# starter
def save(key, value):
    store.set(key, json.dumps(value, default=str), ex=60)


def load(key):
    return json.loads(store.get(key))


# solution
def save(key, value):
    client.sync.set(key, value, ttl=60)


def load(key):
    return client.sync.get(key)


# end
gallery.card("T29", save, load, guess=0)

# %% [markdown] name="T30-text"
# ### T30 · ¿Qué se guarda de un usuario?
#
# La función guarda el objeto que dio la base de datos. En la primera lectura, `id`, `username` y `email` están ahí.
# ¿Cuántos de los tres quedan en la segunda, que sale de Redis?


# %% name="T30" tags=["trap"]
# starter
def read_user(user_id, db):
    if found := store.get(f"t30:{user_id}"):
        return json.loads(found)
    user = db.get(User, user_id)
    store.set(f"t30:{user_id}", json.dumps(user, default=str), ex=60)
    return user


# solution
@cached(ttl=60, key_prefix="t30", client=client)
def read_user(user_id: int, db: Session):
    user = db.get(User, user_id)
    return {"id": user.id, "username": user.username, "email": user.email}


# end
gallery.card("T30", read_user, guess=3)

# %% [markdown] name="T31-text"
# ### T31 · Leer un dato, ¿puede ejecutar código?
#
# Alguien logró escribir una clave en Redis. Tu cliente solo la lee, tres veces. ¿Cuántas veces se ejecuta el código
# del intruso? (Aquí es inofensivo: suma uno a un contador.)


# %% name="T31" tags=["trap"]
# starter
import pickle


def get_value(key):
    value = store.get(key)
    try:
        return json.loads(value.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return pickle.loads(value)


# solution
def get_value(key):
    return client.sync.get(key)


# end
gallery.card("T31", get_value, guess=0)

# %% [markdown] name="T32-text"
# ### T32 · Lo que no existe, ¿se guarda?
#
# Un robot pide 100 veces un usuario que no existe, y la respuesta correcta es `None`. ¿Cuántas consultas llegan a la
# base de datos?


# %% name="T32" tags=["trap"]
# starter
def find_user(user_id, db):
    found = json.loads(store.get(f"t32:{user_id}") or "null")
    if found is not None:
        return found
    user = db.get(User, user_id)
    found = user and user.username
    store.set(f"t32:{user_id}", json.dumps(found), ex=60)
    return found


# solution
@cached(ttl=60, key_prefix="t32", client=client)
def find_user(user_id: int, db: Session):
    user = db.get(User, user_id)
    return user and user.username


# end
gallery.card("T32", find_user, guess=1)

# %% [markdown] name="T34-text"
# ### T34 · ¿Quién dice que es una copia?
#
# La respuesta lleva `"cached": false` y el tiempo que costó. Se pide una vez y luego diez más, que salen del cache.
# ¿Cuántas de esas diez no dicen que son copias?


# %% name="T34" tags=["trap"]
# starter
async def user_view(user_id: int, db: Session = Depends(get_db)):
    start = time.perf_counter()
    if found := store.get(f"t34:{user_id}"):
        return json.loads(found)
    user = db.get(User, user_id)
    seconds = time.perf_counter() - start
    answer = {"username": user.username, "cached": False, "execution_time": seconds}
    store.set(f"t34:{user_id}", json.dumps(answer), ex=60)
    return answer


# solution
@cached(ttl=60, key_prefix="t34", client=client)
async def user_view(user_id: int, db: Session = Depends(get_db)):
    return {"username": db.get(User, user_id).username}


# end
gallery.card("T34", user_view, guess=0)

# %% [markdown] name="T37-text"
# ### T37 · Redis no contesta: ¿cuánto esperas?
#
# Redis se congela: la conexión sigue abierta y nadie responde. Cinco peticiones lo consultan a la vez. ¿Cuántas
# siguen esperando medio segundo después?


# %% name="T37" tags=["trap"]
# starter
plain = redis.from_url(lab.redis.url)


def look_up(key):
    return plain.get(key)


# solution
brief = CacheClient(lab.redis.url)


def look_up(key):
    return brief.sync.get(key)


# end
gallery.card("T37", look_up, guess=0)

# %% [markdown] name="T38-text"
# ### T38 · Tres totales en una consulta
#
# La base de datos tiene 10 usuarios, 100 publicaciones y 400 comentarios. La consulta cuenta las tres tablas a la vez.
# ¿Cuántos usuarios dice que hay?


# %% name="T38" tags=["trap"]
# starter
def totals(db):
    return db.query(func.count(User.id), func.count(Post.id), func.count(Comment.id)).one()


# solution
def totals(db):
    counts = [select(func.count(table.id)).scalar_subquery() for table in (User, Post, Comment)]
    return db.execute(select(*counts)).one()


# end
gallery.card("T38", totals, guess=10)

# %% [markdown] name="T40-text"
# ### T40 · Invalidar mientras otro llena
#
# Una lectura toma el precio viejo y tarda en guardarlo. Mientras tanto, el precio cambia y se invalida la copia. Luego
# llegan 20 lecturas: ¿cuántas reciben el precio viejo?


# %% name="T40" tags=["trap"]
# starter
prices, copies = {}, {}


async def read_price(item):
    if item not in copies:
        copies[item] = await asyncio.sleep(0.05, prices[item])
    return copies[item]


async def forget_price(item):
    copies.pop(item, None)


# solution
prices = {}


@cached(ttl=600, key_prefix="t40", client=client)
async def read_price(item: str):
    return await asyncio.sleep(0.05, prices[item])


async def forget_price(item):
    await read_price.invalidate(item)


# end
gallery.card("T40", prices, read_price, forget_price, guess=0)

# %% [markdown] name="T41-text"
# ### T41 · Un cliente que no sabe esperar
#
# Redis tarda 100 ms en contestar a una función `async def`. En ese momento llegan 10 peticiones a `/health/`, que no
# usa Redis. ¿Cuántas se atienden mientras tanto?


# %% name="T41" tags=["trap"]
# starter
async def ask_redis(key):
    return store.get(key)


# solution
async def ask_redis(key):
    return await client.get(key)


# end
gallery.card("T41", ask_redis, guess=10)

# %% [markdown] name="T42-text"
# ### T42 · Cero segundos y «no es un número»
#
# Una tasa de cambio se guarda con `ttl=0`. Otra vale `NaN`; alguien la pide y luego se corrige. Cada una recibe
# entonces cinco visitas. De esas diez, ¿cuántas ven un error?


# %% name="T42" tags=["trap"]
# starter
def keep(ttl, rates):
    async def rate():
        if (found := store.get("t42")) is None:
            found = json.dumps(rates["EUR"])
            store.set("t42", found, ex=ttl)
        return json.loads(found)

    return rate


# solution
def keep(ttl, rates):
    @cached(ttl=ttl, key_prefix="t42", client=client)
    async def rate():
        return rates["EUR"]

    return rate


# end
gallery.card("T42", keep, guess=0)

# %% [markdown] name="T61-text"
# ### T61 · Una respuesta que no es JSON
#
# El endpoint da un archivo CSV, y su `Response` va al cache. Llegan diez visitas seguidas. ¿Cuántas no reciben el CSV?


# %% name="T61" tags=["trap"]
# starter
async def report():
    if found := store.get("t61"):
        return json.loads(found)
    answer = Response("id,name\n7,Ana\n", media_type="text/csv")
    store.set("t61", json.dumps(answer, default=str), ex=60)
    return answer


# solution
@cached(ttl=60, key_prefix="t61", client=client)
async def report():
    return Response("id,name\n7,Ana\n", media_type="text/csv")


# end
gallery.card("T61", report, guess=0)

# %% [markdown] name="exercise-3"
# ## Ejercicio 3: monitoreo

# %% name="imports-3" tags=["setup"]
import time

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Info, generate_latest
from sqlalchemy import text

from labkit.monitoring import Check, Health, Metrics, MetricsMiddleware, checks

# %% [markdown] name="T49-text"
# ### T49 · El nombre que pediste
#
# Prometheus guarda los números que publica tu aplicación; cada nombre con sus etiquetas es una **serie**. El curso
# declara `Info`, que publica datos fijos como la versión, con el nombre `app_info`. Un panel pide `app_info`. ¿Cuántas
# series encuentra?


# %% name="T49" tags=["trap"]
# starter
def expose():
    registry = CollectorRegistry()
    Info("app_info", "Application", registry=registry).info({"version": "1.0.0"})
    return generate_latest(registry)


# solution
def expose():
    return Metrics(version="1.0.0").render()[0]


# end
gallery.card("T49", expose, guess=1)

# %% [markdown] name="T50-text"
# ### T50 · ¿Cuándo termina una respuesta?
#
# Un endpoint envía su respuesta por partes durante una décima de segundo. El middleware, por donde pasa cada petición,
# mide lo que tarda `call_next`, que llama al endpoint. ¿Qué porcentaje del tiempo de la respuesta registra?


# %% name="T50" tags=["trap"]
# starter
def watch(app, metrics):
    @app.middleware("http")
    async def measure(request, call_next):
        start = time.perf_counter()
        response = await call_next(request)
        seconds = time.perf_counter() - start
        metrics.track_request("GET", request.url.path, response.status_code, seconds)
        return response


# solution
def watch(app, metrics):
    app.add_middleware(MetricsMiddleware, metrics=metrics)


# end
gallery.card("T50", watch, guess=100)

# %% [markdown] name="T51-text"
# ### T51 · Colgaron antes del final
#
# Diez clientes cuelgan antes de recibir la respuesta completa: cinco en medio de una descarga y cinco cansados de
# esperar. ¿Cuántos quedan en las métricas como un 200?


# %% name="T51" tags=["trap"]
# starter
def count(app, metrics):
    @app.middleware("http")
    async def measure(request, call_next):
        start, status = time.perf_counter(), 500
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            seconds = time.perf_counter() - start
            metrics.track_request("GET", request.url.path, status, seconds)


# solution
def count(app, metrics):
    app.add_middleware(MetricsMiddleware, metrics=metrics)


# end
gallery.card("T51", count, guess=0)

# %% [markdown] name="T53-text"
# ### T53 · Un middleware que no hace nada
#
# El de la celda solo deja pasar la petición; el de la cura mide y cuenta. Con un endpoint mínimo, ¿por cuánto
# multiplica el de la celda el tiempo de una petición?


# %% name="T53" tags=["trap"]
# starter
def wrap(app, metrics):
    @app.middleware("http")
    async def nothing(request, call_next):
        return await call_next(request)


# solution
def wrap(app, metrics):
    app.add_middleware(MetricsMiddleware, metrics=metrics)


# end
gallery.card("T53", wrap, guess=1)

# %% [markdown] name="T55-text"
# ### T55 · ¿Está sana la aplicación?
#
# Un balanceador reparte las visitas entre servidores y pregunta a cada uno si está sano: es un **sondeo**. Este pide
# `/health` cinco veces y acepta los códigos 200 a 399. La base de datos está caída. ¿Cuántas veces da por sana la
# aplicación?


# %% name="T55" tags=["trap"]
# starter
PROBE = "/health"


def routes(database):
    router = APIRouter(prefix="/health")

    @router.get("/")
    async def health():
        await database()
        return {"status": "healthy"}

    return router


# solution
PROBE = "/health/ready"


def routes(database):
    return Health([Check("database", database)]).router()


# end
gallery.card("T55", PROBE, routes, guess=0)

# %% [markdown] name="T56-text"
# ### T56 · Dos procesos, ¿una cuenta?
#
# Uvicorn sirve la aplicación con dos procesos y atiende más de 40 peticiones. Después Prometheus lee `/metrics` diez
# veces. ¿Cuántas lecturas muestran todas las peticiones?


# %% name="T56" tags=["trap"]
# starter
environment = {}


def instrument(app):
    requests = Counter("app_requests_total", "Requests", ["endpoint"])

    @app.middleware("http")
    async def count(request, call_next):
        requests.labels(request.url.path).inc()
        return await call_next(request)

    app.get("/metrics")(lambda: Response(generate_latest()))


# solution
environment = {"PROMETHEUS_MULTIPROC_DIR": "counts"}


def instrument(app):
    metrics = Metrics()
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.get("/metrics")(lambda: Response(metrics.render()[0]))


# end
gallery.card("T56", environment, instrument, guess=10)

# %% [markdown] name="T58-text"
# ### T58 · Un sondeo que hace cola
#
# La base de datos está bien, pero una consulta lenta ocupa la única conexión del pool. Llegan cinco sondeos que
# preguntan por ella. ¿Cuántos la dan por caída?


# %% name="T58" tags=["trap"]
# starter
def make_probe(engine):
    async def probe():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return "healthy"

    return probe


# solution
def make_probe(engine):
    health = Health([checks.database(engine)])

    async def probe():
        return (await health.run()).status

    return probe


# end
gallery.card("T58", make_probe, guess=0)

# %% name="seen" tags=["reflect"]
gallery

# %% name="close" tags=["setup"]
lab.close()
