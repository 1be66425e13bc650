# ---
# jupyter:
#   lesson:
#     minutes: 40
# ---

# %% [markdown] name="title"
# # Desafío 1: cache inteligente
#
# **40 minutos.** Un cache que decide cuánto vive cada respuesta, se llena antes de que lleguen las visitas y sigue en
# pie cuando Redis falla.
#
# **Objetivos**
#
# - Ajustar el TTL según la frecuencia de acceso
# - Calentar el cache con los datos críticos
# - Responder también cuando Redis falla

# %% [markdown] name="criteria"
# **Requisitos:** el cuaderno `02_cache` y nociones de `async` y `await`.
#
# **Criterios de evaluación**
#
# - [ ] El TTL se ajusta automáticamente según la frecuencia de acceso
# - [ ] El cache se calienta con los datos críticos (cache warming)
# - [ ] Quien visita no nota las fallas de Redis

# %% name="setup" tags=["setup"]
import asyncio
import math
import time
from collections import Counter

from labkit import Lab
from labkit.blog import create_app
from labkit.course import open_lesson
from labkit.course.lessons.lesson_04 import chosen, near_hits, outage, two_lives, visits
from labkit.replay import replay, zipf_traffic

lab = Lab(create_app())
lesson = open_lesson("04_smart_cache", language="es", lab=lab)
lesson

# %% [markdown] name="predict-text"
# ## ¿Cuánto debe vivir una respuesta?
#
# Un TTL (tiempo de vida) largo da más aciertos y más respuestas **obsoletas**: anteriores al último cambio. Imagina 300
# páginas y 5 visitas por segundo. Unas pocas reciben la mayoría de las visitas. Cada una cambia a su ritmo: de una vez
# cada 10 segundos a una vez al día.
#
# Se tolera un 2 % de respuestas obsoletas. ¿Cuál es el mejor TTL fijo, en segundos? ¿Cuántos puntos de hit rate suma
# un TTL por página?

# %% name="predict" tags=["predict"]
lesson.predict("1", seconds=300, points=2)

# %% name="first-figure" tags=["measure"]
found = lesson.keep("adaptive", replay(zipf_traffic))
fixed = found.df.query("kind == 'fixed' and stale <= 0.02").iloc[-1]
own = found.df.query("kind == 'adaptive' and setting == 0.02").iloc[0]
display(found.plot(), lesson.actual("1", seconds=fixed["setting"], points=100 * own["gain"]))

# %% [markdown] name="actual-text"
# Cada círculo es un TTL fijo; cada rombo, un TTL adaptativo que aprende de cada página. Ambos reciben el mismo
# tráfico, reproducido con un reloj simulado. **Con un TTL fijo, ¿qué porcentaje de respuestas obsoletas cuesta el hit
# rate del primer rombo?**

# %% [markdown] name="hot-text"
# ## ¿Lo más visitado debe vivir más?
#
# Una portada recibe tantas visitas como cien páginas del archivo juntas. Todas cambian, en promedio, una vez por
# hora. Si una página del archivo vive 1, ¿cuánto debe vivir la portada? (10 es diez veces más; 0,5, la mitad).

# %% name="hot-predict" tags=["predict"]
lesson.predict("2", times=10.0)

# %% name="hot-figure" tags=["measure"]
lives = lesson.keep("lives", two_lives())
display(lives.plot(), lesson.actual("2", times=lives.best))

# %% [markdown] name="ttl-text"
# En toda la curva hay un 2 % de respuestas obsoletas. **¿Por qué renovar a menudo la portada cuesta poco y evita
# mucho?**
#
# ## Ejercicio 4.1: un TTL que se ajusta solo
#
# Dificultad: media · Importancia: alta · **8 minutos**
#
# `choose_ttl` sigue la creencia popular: lo más pedido vive más. Corrígela. `budget` es cuántas respuestas obsoletas
# puede dar cada copia; se ajusta solo, hasta cumplir el objetivo. Tu función debe superar al TTL fijo en dos tráficos y
# devolver segundos entre `shortest` y `longest`.


# %% name="ttl" tags=["exercise"] exercise="4.1" minutes=8
# starter
def choose_ttl(accesses_per_s, changes_per_s, budget, shortest=1.0, longest=86_400.0):
    return 3_600 * accesses_per_s * budget


# solution
def choose_ttl(accesses_per_s, changes_per_s, budget, shortest=1.0, longest=86_400.0):
    """Seconds to live: shorter for what is asked for or changes more often, but only by the root."""
    if accesses_per_s <= 0 or changes_per_s <= 0:
        return longest
    life = math.sqrt(2 * budget / (accesses_per_s * changes_per_s))
    return min(longest, max(shortest, life))


# end

# %% name="ttl-figure" tags=["measure"]
replay(zipf_traffic, adaptive=chosen(choose_ttl)).plot()

# %% name="ttl-check" tags=["check"]
lesson.check("4.1", choose_ttl)

# %% [markdown] name="cold-text"
# ## Un Redis vacío
#
# Redis se reinicia y pierde todo. La celda lo vacía y hace las primeras 500 visitas de hoy, a 300 páginas. ¿Qué
# porcentaje responde el cache? ¿Y si antes se leen las 50 páginas más visitadas de ayer?

# %% name="cold-predict" tags=["predict"]
lesson.predict("3", cold=30, warm=90)

# %% name="cold-figure" tags=["measure"]
yesterday, today = visits(seed=1), visits(seed=2)
lab.redis.command("FLUSHALL")
cold = lab.load("/cached/users/{id}", ids=today, requests=500, concurrency=1)
cold.plot_hit_rate()

# %% [markdown] name="warm-text"
# **¿Qué les pasa a las primeras visitas?**
#
# ## Ejercicio 4.2: calienta lo que se va a pedir
#
# Dificultad: media · Importancia: alta · **8 minutos**
#
# `warm_up` lee páginas antes de abrir; `read` las deja en el cache. Aquí lee las primeras por id. Corrígela:
#
# - las más pedidas en `visits`, de mayor a menor y de una en una;
# - a lo sumo `calls` lecturas y `seconds` segundos, aunque una lectura no termine;
# - si una falla, sigue con la próxima;
# - devuelve cuántas salieron bien.


# %% name="warm" tags=["exercise"] exercise="4.2" minutes=8
# starter
async def warm_up(read, visits, calls, seconds):
    done = 0
    for page in sorted(set(visits))[:calls]:
        await read(page)
        done += 1
    return done


# solution
async def warm_up(read, visits, calls, seconds):
    """Read what was asked for most, hottest first, within a budget; how many reads succeeded."""
    done = 0
    try:
        async with asyncio.timeout(seconds):
            for page, _ in Counter(visits).most_common(calls):
                try:
                    await read(page)
                    done += 1
                except Exception:
                    continue
    except TimeoutError:
        pass
    return done


# end


# %% name="warm-figure" tags=["measure"]
async def before_opening(client):
    async def read(page):
        return await client.call("GET", f"/cached/users/{page}")

    return await warm_up(read, yesterday, calls=50, seconds=5)


lab.redis.command("FLUSHALL")
lab.run(before_opening)
warmed = lab.load("/cached/users/{id}", ids=today, requests=500, concurrency=1)
display(warmed.plot_hit_rate(), lesson.actual("3", cold=100 * cold.hit_rate, warm=100 * warmed.hit_rate))

# %% name="warm-check" tags=["check"]
lesson.check("4.2", warm_up)

# %% [markdown] name="outage-text"
# ## Cuando Redis deja de responder
#
# Un Redis apagado rechaza la conexión enseguida. Uno **congelado** es peor: acepta y calla. Aquí se deja de esperar a
# los 200 ms. La figura viene después del ejercicio y usa tu código: 20 peticiones por segundo, y Redis congelado
# durante dos segundos. ¿Cuántas de esas 40 peticiones esperarán en vano?

# %% name="outage-predict" tags=["predict"]
lesson.predict("4", waited=5)

# %% [markdown] name="breaker-text"
# ## Ejercicio 4.3: un circuit breaker
#
# Dificultad: alta · Importancia: alta · **12 minutos**
#
# `call` pregunta con `ask` y, si Redis falla, responde con `otherwise`. Pero no aprende. Dale tres estados, con
# nombres de interruptor eléctrico:
#
# - `closed` (cerrado): se pregunta a Redis. A la **primera** falla, `open`.
# - `open` (abierto): nadie le pregunta durante `recovery` segundos de `self.clock()`.
# - `half_open` (semiabierto): **una sola** petición prueba. Si resulta, `closed`; si no, `open` otra vez. Las demás
#   responden sin esperarla.

# %% name="imports" tags=["setup"]
from fastapi import Response
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from labkit.cache import cached
from labkit.cache.adaptive import AdaptiveTTL
from labkit.cache.warming import Hottest, warm


# %% name="breaker" tags=["exercise"] exercise="4.3" minutes=12
# starter
class Breaker:
    def __init__(self, recovery=0.25, clock=time.monotonic):
        self.recovery, self.clock = recovery, clock
        self.state = "closed"

    async def call(self, ask, otherwise):
        try:
            return await ask()
        except RedisError:
            return await otherwise()


# solution
class Breaker:
    """After the first failure nobody waits for Redis until one probe has found it back."""

    def __init__(self, recovery=0.25, clock=time.monotonic):
        self.recovery, self.clock = recovery, clock
        self.state, self.again = "closed", 0.0

    async def call(self, ask, otherwise):
        """What Redis answers, or what can be said without it."""
        if self.state == "half_open" or (self.state == "open" and self.clock() < self.again):
            return await otherwise()
        if self.state == "open":
            self.state = "half_open"
        try:
            answer = await ask()
        except BaseException as error:
            self.state, self.again = "open", self.clock() + self.recovery
            if not isinstance(error, RedisError):
                raise
        else:
            self.state = "closed"
            return answer
        return await otherwise()


# end

# %% name="guarded" tags=["setup"]
patient = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2, "retry": Retry(NoBackoff(), 0)}
store = Redis.from_url(lab.redis.url, **patient)


@lab.app.get("/guarded/users/{user_id}")
async def guarded(user_id: int, response: Response):
    async def ask():
        return await store.get("greeting")

    async def otherwise():
        response.headers["X-Cache"] = "BYPASS"

    response.headers["X-Cache"] = "HIT"
    return {"greeting": await breaker.call(ask, otherwise)}


# %% name="outage-figure" tags=["measure"]
breaker = Breaker()
lab.redis.command("SET", "greeting", "hola")
frozen = lesson.keep("outage", outage(lab, "/guarded/users/1"))
display(frozen.plot(), lesson.actual("4", waited=frozen.waited))

# %% name="breaker-check" tags=["check"]
lesson.check("4.3", Breaker)

# %% [markdown] name="near-text"
# **¿Qué peticiones esperan todavía? ¿Y cuándo vuelve el primer acierto?**
#
# ## Más cerca que Redis
#
# Aun con Redis sano, cada acierto cuesta un viaje. Un cache **cercano** guarda la respuesta en la memoria del proceso,
# y Redis le avisa de cada cambio (`CLIENT TRACKING`). ¿Cuántas veces más rápido será? ¿Cuántos milisegundos tardará
# en enterarse de un cambio que hizo otro cliente?

# %% name="near-predict" tags=["predict"]
lesson.predict("5", ratio=5, milliseconds=100)

# %% name="near-figure" tags=["measure"]
near = lesson.keep("near", near_hits(lab))
display(near.plot(), lesson.actual("5", ratio=near.redis / near.near, milliseconds=1000 * near.late))

# %% [markdown] name="end-text"
# Mientras dura esa última barra, el cache cercano puede dar una respuesta obsoleta. **¿Para qué datos lo usarías?**
#
# ## Qué aprendiste a predecir

# %% name="calibration" tags=["reflect"]
display(lesson.calibration(), lesson.progress())

# %% [markdown] name="beyond-text"
# ## Más allá
#
# Adaptarse no siempre conviene. Si todas las páginas se visitan y cambian por igual, no hay nada que aprender y el
# intento cuesta aciertos: lo muestra la primera celda. La segunda usa las piezas ya hechas de `labkit`: un TTL
# adaptativo, un observador que cuenta y un calentamiento. La tercera rompe Redis con botones; púlsalos mientras corre
# la cuarta, diez segundos de visitas al cache del blog. **¿Cuántas peticiones fallan?**

# %% name="equal" tags=["measure"]
replay(lambda seed: zipf_traffic(seed, s=0, drift=0, every=(600, 600.1))).plot()

# %% name="pieces" tags=["measure"]
hot, path = Hottest(), "/smart/users/{user_id}"


@lab.app.get(path)
@cached(ttl=AdaptiveTTL(0.02), key_prefix="smart", client=lab.app.state.cache, observer=hot)
async def smart_user(user_id: int):
    return {"id": user_id}


lab.load("/smart/users/{id}", ids=yesterday, requests=1_000)
pages = [{"user_id": page} for page in range(1, 301)]
lab.run(lambda _: warm(smart_user, pages, hot=hot, app=lab.app, path=path, calls=50))

# %% name="switchboard" tags=["measure"]
lab.switchboard()

# %% name="visited" tags=["measure"]
visited = lab.load("/cached/users/{id}", ids=today, rate=50, seconds=10)
display(visited.plot(), visited)
