# ---
# jupyter:
#   lesson:
#     minutes: 45
# ---

# %% [markdown] name="title"
# # Ejercicio 1: análisis y optimización de rendimiento
#
# **45 minutos.** Vas a tomar un endpoint lento, encontrar por qué lo es y arreglarlo sin cambiar su respuesta.
#
# **Objetivos**
#
# - Identificar cuellos de botella en una aplicación FastAPI
# - Aplicar técnicas de profiling
# - Optimizar consultas de base de datos
# - Medir la mejora con honestidad

# %% [markdown] name="criteria"
# **Requisitos:** Python y SQLAlchemy básicos, y el cuaderno `00_start`. La aplicación y los datos ya están aquí.
#
# **Criterios de evaluación**
#
# - [ ] Implementaste profiling correctamente
# - [ ] Identificaste problemas N+1
# - [ ] Aplicaste optimizaciones efectivas
# - [ ] Documentaste mejoras de rendimiento (mínimo 50 % más rápido)

# %% name="setup" tags=["setup"]
from labkit import Lab
from labkit.blog import create_app, indexes
from labkit.course import open_lesson
from labkit.profiling.plans import top_statements
from labkit.stats import one_shot_spread

lab = Lab(create_app())
indexes.drop(lab.engine)
lesson = open_lesson("01_profiling", language="es", lab=lab)
lesson

# %% [markdown] name="predict-text"
# ## ¿Por qué tarda tanto?
#
# `/performance/slow-endpoint` devuelve 50 usuarios con sus publicaciones, 1.000 en total, y el número de comentarios
# de cada una. ¿Cuántas consultas SQL hace? ¿Cuántos segundos tarda? Cambia los números por tu predicción.

# %% name="predict" tags=["predict"]
lesson.predict("1", queries=10, seconds=0.1)

# %% name="first-figure" tags=["measure"]
slow = lab.queries("/performance/slow-endpoint")
display(slow.plot(), lesson.actual("1", queries=slow.count, seconds=slow.elapsed))

# %% [markdown] name="actual-text"
# Cada marca es una consulta. El laboratorio suma a cada una 0,5 ms: lo que en producción cuesta ir y volver por la
# red. **¿Qué parte de la primera figura es una sola consulta repetida?**

# %% [markdown] name="router-text"
# ## El endpoint, por dentro
#
# Este es el código lento. Al declararlo aquí ya es tuyo: reemplaza al de la aplicación, y desde ahora las mediciones
# señalan líneas de este cuaderno. Léelo despacio. **¿En qué se va el tiempo?**

# %% name="imports" tags=["setup"]
import cProfile
import io
import pstats
import time
from collections import Counter
from functools import wraps

from fastapi import APIRouter, Depends
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from labkit.blog import Comment, Post, User, get_db

router = APIRouter(prefix="/performance", tags=["performance"])


# %% name="slow-endpoint" tags=["setup"] file="profiling/performance_test.py"
@router.get("/slow-endpoint")
async def slow_endpoint(db: Session = Depends(get_db), sleep_ms: float = 10):
    result = []
    for user in db.query(User).order_by(User.id).limit(50):
        posts = []
        for post in db.query(Post).filter(Post.author_id == user.id).order_by(Post.id):
            count = db.query(Comment).filter(Comment.post_id == post.id).count()
            posts.append({"id": post.id, "title": post.title, "comments_count": count})
        result.append({"id": user.id, "username": user.username, "posts": posts})
        time.sleep(sleep_ms / 1000)
    return {"users": result, "total": len(result)}


lab.app.include_router(router)

# %% [markdown] name="profiler-text"
# ## Ejercicio 1.1: un profiler que no miente
#
# Dificultad: media · Importancia: alta · **6 minutos**
#
# Este decorador corre y tiene dos defectos. El primero se ve abajo: ¿dónde está la tabla de funciones? El segundo
# aparece cuando el endpoint falla: el profiler se queda encendido. Arregla los dos. En esta lección también hay
# pistas: `lesson.hint("1.1")`.


# %% name="profiler" tags=["exercise"] exercise="1.1" file="profiling/profiler.py" minutes=6
# starter
def profile_endpoint(func):
    @wraps(func)
    async def wrapper(*args, **kwargs):
        profiler = cProfile.Profile()
        profiler.enable()
        start = time.time()
        result = await func(*args, **kwargs)
        elapsed = time.time() - start
        profiler.disable()
        stream = io.StringIO()
        stats = pstats.Stats(profiler, stream=stream).sort_stats("cumulative")
        print(f"Execution time: {elapsed:.4f}s")
        stats.print_stats(10)
        return result

    return wrapper


# solution
def profile_endpoint(func):
    """Print the wall time and the ten dearest functions of each call, also of one that fails."""

    @wraps(func)
    async def wrapper(*args, **kwargs):
        profiler = cProfile.Profile()
        start = time.perf_counter()
        profiler.enable()
        try:
            return await func(*args, **kwargs)
        finally:
            profiler.disable()
            elapsed = time.perf_counter() - start
            stream = io.StringIO()
            stats = pstats.Stats(profiler, stream=stream).sort_stats("cumulative")
            stats.print_stats(10)
            print(f"Execution time: {elapsed:.4f}s")
            print(stream.getvalue())

    return wrapper


# end


# %% name="profiled" tags=["measure"]
@lab.app.get("/profiled")
@profile_endpoint
async def profiled(db: Session = Depends(get_db)):
    return await slow_endpoint(db, sleep_ms=0)


lab.get("/profiled")

# %% name="profiler-check" tags=["check"]
lesson.check("1.1", profile_endpoint)

# %% [markdown] name="lines-text"
# ## Del total a la línea
#
# Una tabla de funciones dice **qué** se llama mil veces; no dice quién lo llama. La figura muestra quién llama a
# quién: el ancho es el tiempo. Debajo, el mismo endpoint línea por línea.

# %% name="profile" tags=["measure"]
display(
    lab.profile("/performance/slow-endpoint").plot(),
    lab.lines("/performance/slow-endpoint", slow_endpoint),
)

# %% [markdown] name="nplus1-text"
# **¿Qué dos líneas consultan la base de datos dentro de un bucle?**
#
# ## Ejercicio 1.2: encuentra los dos N+1
#
# Dificultad: media · Importancia: alta · **6 minutos**
#
# Un N+1 es la misma consulta, desde la misma línea, una vez por fila. Esta función busca consultas repetidas y no
# encuentra ninguna. ¿Qué las hace parecer distintas? Corrígela: debe devolver, para cada línea (`s.site`), cuántas
# veces corrió la consulta que se repite.


# %% name="nplus1" tags=["exercise"] exercise="1.2" file="profiling/profiler.py" minutes=6
# starter
def find_n_plus_one(statements, least=5):
    times = Counter((s.site, s.sql, s.parameters) for s in statements)
    return {site: count for (site, sql, parameters), count in times.items() if count >= least}


# solution
def find_n_plus_one(statements, least=5):
    """How often each place ran one and the same statement, where that is `least` times or more."""
    times = Counter((s.site, s.sql) for s in statements)
    return {site: count for (site, sql), count in times.items() if count >= least}


# end

# %% name="nplus1-check" tags=["check"]
slow = lab.queries("/performance/slow-endpoint")
lesson.check("1.2", find_n_plus_one)

# %% [markdown] name="sleep-text"
# ## ¿Y si solo borro el `sleep`?
#
# El endpoint duerme 10 ms por usuario: medio segundo a la vista. Es lo primero que cualquiera borraría. **¿Cuántas
# veces más rápido queda, y cuántas consultas hará?**

# %% name="sleep-predict" tags=["predict"]
lesson.predict("2", ratio=10.0, queries=1)

# %% name="sleep" tags=["measure"]
no_sleep = lab.compare("/performance/slow-endpoint", "/performance/slow-endpoint?sleep_ms=0", seconds=30)
display(no_sleep.plot(), lesson.actual("2", ratio=no_sleep.ratio, queries=no_sleep.statements_b))

# %% [markdown] name="fast-text"
# **¿Qué quedó exactamente igual en la primera figura?**
#
# ## Ejercicio 1.3: rápido y con la misma respuesta
#
# Dificultad: alta · Importancia: alta · **11 minutos**
#
# Así lo escribe casi todo el mundo: dos consultas y mucho más rápido. Pero responde otra cosa. Corrígelo: **el mismo
# cuerpo** que el lento, en 3 consultas o menos, sin traer tablas enteras para filtrarlas en Python. La comprobación usa
# también datos que no ves.


# %% name="fast-endpoint" tags=["exercise"] exercise="1.3" file="profiling/performance_test.py" minutes=11
# starter
@router.get("/fast-endpoint")
async def fast_endpoint(db: Session = Depends(get_db)):
    posts, comments = func.count(Post.id).label("posts"), func.count(Comment.id).label("comments")
    users = (
        db.query(User.id, User.username, posts, comments)
        .outerjoin(Post, Post.author_id == User.id)
        .outerjoin(Comment, Comment.post_id == Post.id)
        .group_by(User.id, User.username)
        .limit(50)
        .all()
    )
    posts_by_user = {}
    for post in db.query(Post).filter(Post.author_id.in_([user.id for user in users])):
        posts_by_user.setdefault(post.author_id, []).append({"id": post.id, "title": post.title})
    result = []
    for user in users:
        result.append(
            {
                "id": user.id,
                "username": user.username,
                "posts": posts_by_user.get(user.id, []),
                "posts_count": user.posts,
                "comments_count": user.comments,
            }
        )
    return {"users": result, "total": len(result)}


# solution
@router.get("/fast-endpoint")
async def fast_endpoint(db: Session = Depends(get_db)):
    """The slow endpoint's answer from two statements."""
    users = db.execute(select(User.id, User.username).order_by(User.id).limit(50)).all()
    posts = db.execute(
        select(Post.id, Post.title, Post.author_id, func.count(Comment.id))
        .outerjoin(Comment, Comment.post_id == Post.id)
        .where(Post.author_id.in_([user.id for user in users]))
        .group_by(Post.id, Post.title, Post.author_id)
        .order_by(Post.id)
    )
    posts_by_user = {user.id: [] for user in users}
    for post_id, title, author_id, comments in posts:
        posts_by_user[author_id].append({"id": post_id, "title": title, "comments_count": comments})
    result = [
        {"id": user.id, "username": user.username, "posts": posts_by_user[user.id]} for user in users
    ]
    return {"users": result, "total": len(result)}


# end

# %% name="fast-check" tags=["check"]
display(lab.queries("/performance/fast-endpoint"), lesson.check("1.3", fast_endpoint))

# %% [markdown] name="index-text"
# ## Ejercicio 1.4: el índice que falta
#
# Dificultad: media · Importancia: alta · **4 minutos**
#
# Declarar una clave foránea no crea un índice. La segunda tarjeta muestra el plan de la consulta que corre mil veces:
# `SCAN` es leer la tabla entera. **¿Por qué columna busca?** Corrige la función para que
# ninguna consulta repetida lea una tabla entera.


# %% name="indexes" tags=["exercise"] exercise="1.4" file="profiling/performance_test.py" minutes=4
# starter
def create_indexes(connection):
    connection.execute(text("CREATE INDEX IF NOT EXISTS ix_comments_author_id ON comments (author_id)"))


# solution
def create_indexes(connection):
    """Index the foreign keys that the feed looks up."""
    connection.execute(text("CREATE INDEX IF NOT EXISTS ix_posts_author_id ON posts (author_id)"))
    connection.execute(text("CREATE INDEX IF NOT EXISTS ix_comments_post_id ON comments (post_id)"))


# end

# %% name="index-check" tags=["check"]
display(lesson.check("1.4", create_indexes), lab.explain(slow.statements[-1]))

# %% [markdown] name="honest-text"
# ## Ejercicio 1.5: una mejora que puedas prometer
#
# Dificultad: media · Importancia: alta · **3 minutos**
#
# Cada punto de la figura compara un endpoint **consigo mismo**, midiendo una sola vez cada lado. ¿Qué «mejora»
# anunciarías si solo vieras el punto más alto? Corrige la función: que devuelva la mejora (0,5 = 50 %) que puedes
# prometer aun con mala suerte.

# %% name="one-shot" tags=["measure"]
one_shot_spread(lambda: lab.get("/health/")).plot()


# %% name="improvement" tags=["exercise"] exercise="1.5" file="profiling/profiler.py" minutes=3
# starter
def improvement(lab, before, after):
    return 1 - lab.get(after).elapsed / lab.get(before).elapsed


# solution
def improvement(lab, before, after):
    """The share of the time that is saved even with bad luck: the low end of the interval."""
    return 1 - 1 / lab.compare(before, after).low


# end

# %% name="improvement-check" tags=["check"]
lesson.check("1.5", improvement)

# %% name="final" tags=["measure"]
final = lab.compare("/performance/slow-endpoint", "/performance/fast-endpoint", seconds=30)
final.plot()

# %% [markdown] name="report-text"
# **¿Qué mejora puedes prometer, según el extremo inferior del intervalo?**
#
# ## Tu reporte
#
# El reporte se escribe con lo que mediste, y tu código va al lado. Falta tu interpretación: ábrelo y cuenta qué
# cambio explica la mayor parte de la mejora y cómo lo sabes.

# %% name="report" tags=["reflect"]
display(lesson.calibration(), lesson.report(slow, final))

# %% [markdown] name="beyond-text"
# ## Más allá
#
# Fuera de los 45 minutos, con el 1.3 y el 1.4 resueltos. ¿Y si la base de datos arma el JSON, en una sola consulta?
# ¿Cuánta memoria cuesta traer
# filas enteras para contarlas? ¿Qué ve py-spy desde fuera? ¿Y qué consultas suman más tiempo en un PostgreSQL de
# verdad, según `pg_stat_statements`? Las celdas corren tal cual.

# %% name="fastest" tags=["measure"]
lab.compare("/performance/fast-endpoint", "/performance/fastest-endpoint").plot()


# %% name="memory" tags=["measure"]
@lab.app.get("/count-in-python")
async def count_in_python(db: Session = Depends(get_db)):
    comments = db.query(Comment).all()
    total = len(comments)
    return {"total": total}


lab.memory("/count-in-python", count_in_python).plot()

# %% name="sampling" tags=["measure"]
lab.sample("/performance/slow-endpoint?sleep_ms=0").plot()

# %% name="postgres" tags=["measure"]
with Lab(create_app(), postgres=True) as other:
    with other.engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_statements_reset()"))
    other.get("/performance/slow-endpoint?sleep_ms=0")
    statistics = top_statements(other.engine, most=3)
statistics
