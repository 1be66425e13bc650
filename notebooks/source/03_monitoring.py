# ---
# jupyter:
#   lesson:
#     minutes: 60
# ---

# %% [markdown] name="title"
# # Ejercicio 3: sistema de monitoreo completo
#
# **60 minutos.** Tu aplicación responde, pero no sabe nada de sí misma. Vas a darle métricas, middleware, health
# checks, un panel y una alerta.
#
# Una **métrica** es un número con nombre, como las peticiones atendidas. Prometheus la lee cada pocos segundos y la
# guarda. Sus **etiquetas** (la ruta, el código) la dividen en **series**.
#
# **Objetivos**
#
# - Configurar métricas de aplicación
# - Implementar health checks
# - Crear dashboard de monitoreo
# - Configurar alertas básicas

# %% [markdown] name="criteria"
# **Requisitos:** el cuaderno `00_start`. El curso pide lo básico de Prometheus y de JavaScript; aquí no hace
# falta.
#
# **Criterios de evaluación**
#
# - [ ] Configuraste métricas de Prometheus
# - [ ] Implementaste middleware de monitoreo
# - [ ] Creaste health checks detallados
# - [ ] Verificaste captura de métricas en tiempo real
#
# **Pruebas y validación**
#
# 1. Las métricas se generan correctamente: 3.1 y 3.2; en tiempo real, en el panel de 3.7
# 2. Los health checks, en diferentes escenarios: 3.5 y 3.6
# 3. El middleware captura todas las peticiones: 3.3 y 3.4

# %% name="setup" tags=["setup"]
import io
from threading import Timer

from labkit import Lab, zipf
from labkit.blog import create_app
from labkit.course import open_lesson
from labkit.course.lessons.lesson_03 import buckets, hang_up, has_postgres, inventory
from labkit.course.lessons.lesson_03 import scenarios, statuses, storm
from labkit.monitoring import Alert, History, Metrics, MetricsMiddleware, Snapshot, logs

lab = Lab(create_app(monitored=False), redis=True, postgres=has_postgres())
lesson = open_lesson("03_monitoring", language="es", lab=lab)
lesson

# %% [markdown] name="predict-text"
# ## ¿Qué ve una aplicación de sí misma?
#
# La aplicación del blog, ya monitoreada, recibe 150 peticiones por segundo. El 15 % pide un usuario que no existe
# (404) y el 5 %, un endpoint que falla (500). El panel muestra **RED**: tasa (*rate*), errores y duración. ¿Qué
# porcentaje contará como error? ¿Qué p95 dirá, en milisegundos (el tiempo que 95 de cada 100 no superan)? Cambia los
# números por tu predicción.

# %% name="predict" tags=["predict"]
lesson.predict("1", errors=20, p95_ms=100)


# %% name="first-figure" tags=["measure"]
def broken():
    raise RuntimeError("out of stock")


mix = {"/users/{id}": 80, "/users/999999": 15, "/broken": 5}
with Lab(create_app(), redis=lab.redis.url, database_url=lab.database_url) as good:
    good.app.get("/broken")(broken)
    panel = good.panel()
    with panel.live():
        good.load(mix, ids=zipf(300), rate=150, seconds=3, concurrency=10)
seen = panel.df.iloc[-1]
lesson.actual("1", errors=100 * seen["errors"], p95_ms=1_000 * seen["p95_s"])

# %% [markdown] name="red-text"
# **¿Quién tiene que corregir un 404, y quién un 500?**
#
# ## Ejercicio 3.1: métricas en su propio registro
#
# Dificultad: media · Importancia: alta · **5 minutos**
#
# La aplicación de `lab` no tiene nada de eso: lo pones tú. Esta clase, el colector, declara las seis métricas y
# funciona una vez. Un segundo colector (la celda que lo crea, otra vez) encuentra los nombres ocupados en el
# **registro** global, donde viven las métricas: `Duplicated timeseries`. Corrígela: que todo viva en el registro que
# recibe.

# %% name="imports" tags=["setup"]
import asyncio
import logging
import re
import time
import uuid

import psutil
import redis
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import event, text

from labkit.monitoring import ids


# %% name="metrics" tags=["exercise"] exercise="3.1" file="monitoring/metrics.py" minutes=5
# starter
class MetricsCollector:
    def __init__(self, registry=REGISTRY):
        self.registry = REGISTRY
        labels = ["method", "endpoint"]
        self.requests = Counter("app_requests_total", "Total requests", [*labels, "status"])
        self.duration = Histogram("app_request_duration_seconds", "Request duration", labels)
        self.users = Gauge("app_active_users", "Active users")
        self.queries = Counter("app_database_queries_total", "Database queries", ["operation"])
        self.cache = Counter("app_cache_operations_total", "Cache operations", ["operation", "result"])
        Info("app", "Application information").info({"version": "1.0.0", "environment": "development"})

    def track_request(self, method, endpoint, status, duration):
        self.requests.labels(method, endpoint, status).inc()
        self.duration.labels(method, endpoint).observe(duration)

    def track_database_query(self, operation):
        self.queries.labels(operation).inc()

    def track_cache_operation(self, operation, result):
        self.cache.labels(operation, result).inc()


# solution
class MetricsCollector:
    """The course's six metrics, in the registry that is handed in."""

    def __init__(self, registry=REGISTRY):
        self.registry = registry
        labels, own = ["method", "endpoint"], {"registry": registry}
        self.requests = Counter("app_requests_total", "Total requests", [*labels, "status"], **own)
        self.duration = Histogram("app_request_duration_seconds", "Request duration", labels, **own)
        self.users = Gauge("app_active_users", "Active users", **own)
        self.queries = Counter("app_database_queries_total", "Database queries", ["operation"], **own)
        self.cache = Counter(
            "app_cache_operations_total", "Cache operations", ["operation", "result"], **own
        )
        about = {"version": "1.0.0", "environment": "development"}
        Info("app", "Application information", **own).info(about)

    def track_request(self, method, endpoint, status, duration):
        """One request and its seconds."""
        self.requests.labels(method, endpoint, status).inc()
        self.duration.labels(method, endpoint).observe(duration)

    def track_database_query(self, operation):
        """One statement."""
        self.queries.labels(operation).inc()

    def track_cache_operation(self, operation, result):
        """One use of the cache."""
        self.cache.labels(operation, result).inc()


# end

# %% name="metrics-check" tags=["check"]
lesson.check("3.1", MetricsCollector)

# %% [markdown] name="live-text"
# ## Ejercicio 3.2: métricas que viven
#
# Dificultad: media · Importancia: alta · **7 minutos**
#
# Tres de las seis quedan en 0: nadie las alimenta. Completa los tres métodos. SQLAlchemy llama a `on_statement` antes
# de cada consulta; el cache, a `on_cache` con cada uso (`event.kind`: `hit`, `miss`, `stale`... o `breaker`, que no
# es una lectura); el middleware, a `saw` con quien visita. Activos son los visitantes distintos de los últimos 5
# minutos, según `self.clock()`. Cada valor nuevo de una etiqueta crea otra serie.


# %% name="live" tags=["exercise"] exercise="3.2" file="monitoring/metrics.py" minutes=7
class LiveMetrics(MetricsCollector):
    """Metrics that are told of statements, of the cache and of visits."""

    # starter
    def __init__(self, registry=REGISTRY, clock=time.monotonic):
        super().__init__(registry)
        self.clock, self.seen = clock, {}

    def on_statement(self, connection, cursor, statement, parameters, context, executemany):
        pass

    def on_cache(self, event):
        pass

    def saw(self, user):
        pass

    # solution
    def __init__(self, registry=REGISTRY, clock=time.monotonic):
        super().__init__(registry)
        self.clock, self.seen = clock, {}
        self.users.set_function(self.active)

    def on_statement(self, connection, cursor, statement, parameters, context, executemany):
        """SQLAlchemy's event: one statement, by its first word."""
        self.track_database_query(statement.split(None, 1)[0].upper())

    def on_cache(self, event):
        """The cache's observer: what became of one look-up."""
        if event.kind != "breaker":
            self.track_cache_operation("get", event.kind)

    def saw(self, user):
        """Somebody visits."""
        self.seen[user] = self.clock()

    def active(self):
        """How many came within the last five minutes, counted when somebody asks."""
        since = self.clock() - 300
        for user, at in list(self.seen.items()):
            if at < since:
                del self.seen[user]
        return len(self.seen)

    # end


# %% name="live-check" tags=["check"]
try:
    metrics = LiveMetrics(CollectorRegistry())
except ValueError as error:
    print(error)
event.listen(lab.engine, "before_cursor_execute", metrics.on_statement)
lab.app.state.cache_observer = metrics.on_cache
lab.app.state.metrics = metrics
lab.load("/cached/users/{id}", ids=zipf(50), requests=200)
display(inventory(metrics), lesson.check("3.2", LiveMetrics))

# %% [markdown] name="endpoint-text"
# **¿Qué métricas siguen en 0, y quién debería alimentarlas?**
#
# ## Ejercicio 3.3: la etiqueta que explota
#
# Dificultad: media · Importancia: alta · **5 minutos**
#
# Abajo está el **middleware**, por donde pasa cada petición. `endpoint_of` da la etiqueta de cada petición: la ruta
# tal como llegó. Un robot prueba 200 rutas inventadas; mira cuántas series quedan. Corrígela: la plantilla de la ruta
# (`/users/{user_id}`), que está en `request.scope` cuando la aplicación ya respondió, y un solo nombre para lo que no
# existe.


# %% name="naive-middleware" tags=["setup"]
async def monitoring_middleware(request, call_next):
    request_id = str(uuid.uuid4())
    request.state.request_id = request_id
    metrics, start, status = request.app.state.metrics, time.perf_counter(), 500
    try:
        response = await call_next(request)
        status = response.status_code
        response.headers["X-Request-ID"] = request_id
        response.headers["X-Response-Time"] = f"{time.perf_counter() - start:.4f}"
        return response
    finally:
        metrics.saw(request.cookies.get("session", request.client.host))
        metrics.track_request(request.method, endpoint_of(request), status, time.perf_counter() - start)


# %% name="endpoint" tags=["exercise"] exercise="3.3" file="monitoring/monitoring_middleware.py" minutes=5
# starter
def endpoint_of(request):
    return request.url.path


# solution
def endpoint_of(request):
    """The template of the route that answered; one name for all paths that nobody serves."""
    route = request.scope.get("route")
    return route.path if route else "unmatched"


# end

# %% name="endpoint-check" tags=["check"]
lab.app.middleware("http")(monitoring_middleware)
lab.load("/wp-admin/{id}", ids=range(200), requests=200)
display(inventory(metrics), lesson.check("3.3", endpoint_of))

# %% [markdown] name="ids-text"
# ## Ejercicio 3.4: un identificador en cada respuesta
#
# Dificultad: alta · Importancia: alta · **7 minutos**
#
# Quien llama a soporte cita el `X-Request-ID`. Justo la respuesta que falla (500) no lo lleva, porque la escribe
# Starlette por fuera de este middleware; y el que traía el cliente se ignora. Corrígelo: responde tú el 500 y deja la
# excepción en el log; acepta el identificador que llega solo si tiene de 1 a 64 letras, dígitos o `._:-`. Con
# `ids.request_id.set(...)` llega al log.


# %% name="ids" tags=["exercise"] exercise="3.4" file="monitoring/monitoring_middleware.py" minutes=7
# starter
async def monitoring_middleware(request, call_next):
    request_id = str(uuid.uuid4())
    request.state.request_id = request_id
    metrics, start, status = request.app.state.metrics, time.perf_counter(), 500
    try:
        response = await call_next(request)
        status = response.status_code
        response.headers["X-Request-ID"] = request_id
        response.headers["X-Response-Time"] = f"{time.perf_counter() - start:.4f}"
        return response
    finally:
        metrics.saw(request.cookies.get("session", request.client.host))
        metrics.track_request(request.method, endpoint_of(request), status, time.perf_counter() - start)


# solution
async def monitoring_middleware(request, call_next):
    """Count and time a request; every answer, a 500 too, carries the id that the log knows."""
    request_id = request.headers.get("X-Request-ID", "")
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", request_id):
        request_id = uuid.uuid4().hex
    request.state.request_id = request_id
    ids.request_id.set(request_id)
    metrics, start = request.app.state.metrics, time.perf_counter()
    try:
        response = await call_next(request)
    except Exception:
        logging.getLogger("labkit.http").exception("%s %s failed", request.method, request.url.path)
        response = PlainTextResponse("Internal Server Error", 500)
    seconds = time.perf_counter() - start
    metrics.saw(request.cookies.get("session", request.client.host))
    metrics.track_request(request.method, endpoint_of(request), response.status_code, seconds)
    response.headers["X-Request-ID"] = request_id
    response.headers["X-Response-Time"] = f"{seconds:.4f}"
    return response


# end

# %% name="ids-check" tags=["check"]
lab.app.middleware("http")(monitoring_middleware)
lab.app.get("/broken")(broken)
reply = lab.get("/broken", headers={"X-Request-ID": "support-42"})
found = lab.logs("http", request_id="support-42")[["level", "request_id", "message"]]
print("X-Request-ID:", reply.headers.get("x-request-id"))
display(found, lesson.check("3.4", monitoring_middleware))

# %% [markdown] name="hangup-text"
# ## El cliente que cuelga
#
# Veinte clientes piden una descarga y se van tras diez trozos. Tu middleware, como todo `BaseHTTPMiddleware`,
# anota cuando salen los encabezados: 200 y casi ningún tiempo. El de `labkit` es ASGI puro: recibe los mismos mensajes
# que el servidor, ve pasar cada trozo y anota 499, «el cliente se fue».
# **¿Cuál de los dos te avisaría de una descarga tan lenta que nadie la espera?**


# %% name="hangup" tags=["measure"]
@lab.app.get("/download")
async def download():
    async def pieces():
        for _ in range(50):
            yield b"." * 1_000
            await asyncio.sleep(0.02)

    return StreamingResponse(pieces())


shipped = Metrics()
hang_up(lab, MetricsMiddleware(lab.app, metrics=shipped), "/download", times=20, after=10)
statuses("/download", monitoring_middleware=metrics, MetricsMiddleware=shipped)

# %% [markdown] name="buckets-text"
# ## ¿De dónde sale un p95?
#
# Prometheus no guarda cada duración: cuenta cuántas no pasan de cada límite (`le`), los **buckets**. Se le pregunta
# así:
#
# - `rate(x[1m])`: cuánto creció un contador, por segundo
# - `histogram_quantile(0.95, rate(x_bucket[1m]))`: busca el bucket del 95 % y traza una recta dentro de él
#
# El primer bucket por defecto llega a 5 ms. Con respuestas más rápidas, la recta va de 0 a 5 ms y el p95 sale siempre
# cerca de 4,75 ms. **¿Qué límites pondrías en `MetricsCollector`?**

# %% name="buckets" tags=["measure"]
lab.get("/health/")
before = Snapshot.of(metrics)
loaded = lab.load("/health/", requests=1_000, concurrency=1)
seen = buckets(before, Snapshot.of(metrics), loaded, endpoint="/health/")
display(seen.plot(), seen)

# %% [markdown] name="blocking-text"
# ## Un endpoint que bloquea
#
# `/blocking` es `async` y duerme medio segundo con `time.sleep`. Mientras tanto, llegan 100 peticiones por segundo a
# `/health/`. ¿Qué p95 tendrán, en milisegundos, si cada una se cuenta desde que debía salir? ¿Y qué p95 dirá tu
# histograma?

# %% name="blocking-predict" tags=["predict"]
lesson.predict("2", wait_ms=5, told_ms=5)


# %% name="blocking" tags=["measure"]
@lab.app.get("/blocking")
async def blocking():
    time.sleep(0.5)


history = History(window=60)
history.add(Snapshot.of(metrics))
Timer(0.5, lab.get, ["/blocking"]).start()
waited = lab.load("/health/", rate=100, seconds=1.5)
history.add(Snapshot.of(metrics))
told = history.quantile(0.95, endpoint="/health/")
display(waited.plot(), lesson.actual("2", wait_ms=1_000 * waited.percentiles["p95"], told_ms=1_000 * told))

# %% [markdown] name="part-text"
# **¿Cuándo arranca el reloj de tu middleware, y dónde espera la petición hasta entonces?**
#
# ## Ejercicio 3.5: preguntarle a una dependencia
#
# Dificultad: alta · Importancia: alta · **8 minutos**
#
# Un **sondeo**, `check_part`, pregunta si una dependencia responde. Tres defectos: el texto `"SELECT 1"` falla siempre;
# el error muestra a cualquiera host, puerto y usuario; si la base de datos calla, todos esperan. Corrígelo: pregunta en
# un hilo, con 0,5 s de límite; responde con una palabra y deja la excepción en el log.

# %% name="router" tags=["setup"] file="monitoring/health_checks.py"
router = APIRouter(prefix="/health", tags=["health"])


@router.get("/")
async def basic_health():
    """Alive; asks nobody."""
    return {"status": "healthy", "timestamp": time.time()}


@router.get("/metrics")
async def get_metrics(request: Request):
    """What Prometheus reads."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


# %% name="part" tags=["exercise"] exercise="3.5" file="monitoring/health_checks.py" minutes=8
def ask_cache(redis_url):
    """One PING; raises where Redis does not answer at once."""
    with redis.from_url(redis_url, socket_timeout=0.2, socket_connect_timeout=0.2, retry=None) as client:
        client.ping()


# starter
def ask_database(engine):
    with engine.connect() as connection:
        connection.execute("SELECT 1")


async def check_part(name, ask):
    start = time.perf_counter()
    try:
        ask()
    except Exception as error:
        return {"status": "unhealthy", "error": str(error)}
    return {"status": "healthy", "response_time": f"{time.perf_counter() - start:.4f}s"}


# solution
def ask_database(engine):
    """One statement; raises where the database does not answer."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


async def check_part(name, ask):
    """Ask in a thread, for half a second at most; why a part fails is told to the log alone."""
    start = time.perf_counter()
    try:
        await asyncio.wait_for(asyncio.to_thread(ask), 0.5)
    except Exception as error:
        logging.getLogger("labkit.health").warning("%s failed", name, exc_info=True)
        word = "timeout" if isinstance(error, TimeoutError) else "unavailable"
        return {"status": "unhealthy", "error": word}
    return {"status": "healthy", "response_time": f"{time.perf_counter() - start:.4f}s"}


# end

# %% name="part-check" tags=["check"]
lab.app.include_router(router)
exported = lab.get("/health/metrics").text
print(*re.findall("^app_requests_total.*", exported, re.MULTILINE)[-5:], sep="\n")
lesson.check("3.5", check_part)

# %% [markdown] name="whole-text"
# ## Ejercicio 3.6: el health check detallado
#
# Dificultad: alta · Importancia: alta · **7 minutos**
#
# Dos defectos más. `cpu_percent(interval=1)` detiene a todos un segundo en cada sondeo. Y un
# `unhealthy` llega con HTTP 200: el balanceador, que reparte las visitas y solo mira el código, las sigue mandando.
# Corrígelo: sin esperar, y 503 si está `unhealthy`; `degraded` sigue siendo 200. Abajo fallan a propósito la base de
# datos, Redis y el disco; lo que no es de verdad dice «(simulado)».


# %% name="whole" tags=["exercise"] exercise="3.6" file="monitoring/health_checks.py" minutes=7
# starter
@router.get("/detailed")
async def detailed_health(request: Request, response: Response):
    state = request.app.state
    checks = {
        "database": await check_part("database", lambda: ask_database(state.engine)),
        "cache": await check_part("cache", lambda: ask_cache(state.redis_url)),
    }
    status = "healthy"
    if checks["database"]["status"] == "unhealthy":
        status = "unhealthy"
    elif checks["cache"]["status"] == "unhealthy":
        status = "degraded"
    memory, disk = psutil.virtual_memory().percent, state.disk_usage("/").percent
    cpu = psutil.cpu_percent(interval=1)
    system = {"memory_usage": f"{memory:.1f}%", "disk_usage": f"{disk:.1f}%", "cpu_usage": f"{cpu:.1f}%"}
    checks["system"] = system
    if status == "healthy" and max(memory, disk) > 90:
        status = "degraded"
    return {"status": status, "timestamp": time.time(), "checks": checks}


# solution
@router.get("/detailed")
async def detailed_health(request: Request, response: Response):
    """Every part asked at once; 503 tells a load balancer to send nobody here."""
    state = request.app.state
    database, cache = await asyncio.gather(
        check_part("database", lambda: ask_database(state.engine)),
        check_part("cache", lambda: ask_cache(state.redis_url)),
    )
    memory, disk = psutil.virtual_memory().percent, state.disk_usage("/").percent
    cpu = psutil.cpu_percent()
    system = {"memory_usage": f"{memory:.1f}%", "disk_usage": f"{disk:.1f}%", "cpu_usage": f"{cpu:.1f}%"}
    status = "healthy"
    if cache["status"] == "unhealthy" or max(memory, disk) > 90:
        status = "degraded"
    if database["status"] == "unhealthy":
        status, response.status_code = "unhealthy", 503
    checks = {"database": database, "cache": cache, "system": system}
    return {"status": status, "timestamp": time.time(), "checks": checks}


# end

# %% name="whole-check" tags=["check"]
health = lesson.keep("health", scenarios(lab, "/health/detailed"))
display(health.plot(), lesson.check("3.6", detailed_health))

# %% [markdown] name="alert-text"
# **¿En qué situaciones debe el balanceador dejar de mandar visitas?**
#
# ## Ejercicio 3.7: una alerta que avisa y se calla
#
# Dificultad: baja · Importancia: alta · **4 minutos**
#
# Esta alerta suena con el primer error, y siempre hay alguno: ya nadie la mira. Corrígela: que suene (`firing`) si más
# del 5 % de las peticiones falla durante 2 segundos. Abajo, panel y alerta leen tus métricas mientras la base de datos
# cae a los 2 segundos y vuelve a los 5.


# %% name="alert" tags=["exercise"] exercise="3.7" file="monitoring/metrics.py" minutes=4
# starter
def error_alert():
    return Alert("HighErrorRate", "error_rate", above=0, for_=0)


# solution
def error_alert():
    """More than 5 % of the requests failing for two seconds."""
    return Alert("HighErrorRate", "error_rate", above=0.05, for_=2)


# end

# %% name="panel" tags=["measure"]
alert = error_alert()
panel = lab.panel(window=2, alerts=[alert])
visits = {"/users/{id}": 40, "/cached/users/{id}": 59, "/broken": 1}
with panel.live():
    storm(lab, visits, fault="database_down", ids=zipf(300), rate=100, seconds=8, concurrency=10)
lesson.keep("panel", panel)
display(lesson.keep("alert", alert).plot(), lesson.check("3.7", error_alert))

# %% [markdown] name="report-text"
# **¿Cuántos segundos pasaron entre la caída y el aviso?**
#
# ## Tu reporte
#
# El reporte trae lo que mediste; tu código va al lado. Faltan tus observaciones: qué viste durante la caída, qué
# métrica la mostró primero y qué alerta agregarías.
#
# **Más allá** de los 60 minutos:
#
# - `logs.configure` da un nivel de log a cada componente
# - `lab.system()` muestra procesos y memoria, como `htop`. `labkit` los mide cuando Prometheus lee:
#   `update_system_metrics()` sobra
# - `lab.switchboard()` da botones que rompen cada parte
# - `08_trap_gallery` tiene más trampas

# %% name="report" tags=["reflect"]
lesson.keep("metrics", inventory(metrics))
display(lesson.calibration(), lesson.report())

# %% name="system" tags=["measure"]
written, unwatch = io.StringIO(), shipped.watch_engine(lab.engine)
logs.configure(levels={"sql": "DEBUG"}, stream=written)
lab.get("/users/1")
unwatch()
print(written.getvalue())
lab.system()
