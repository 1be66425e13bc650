# ---
# jupyter:
#   lesson:
#     minutes: 10
# ---

# %% [markdown] name="title"
# # Antes de empezar
#
# **10 minutos.** Aquí conoces el taller: una aplicación FastAPI de verdad que corre dentro de este cuaderno, y una
# herramienta, `Lab`, que le hace peticiones, las mide y dibuja lo que midió.
#
# Al terminar sabrás:
#
# - [ ] hacer una petición y leer su respuesta;
# - [ ] anotar una predicción antes de medir;
# - [ ] resolver un ejercicio, comprobarlo y pedir una pista.

# %% [markdown] name="run"
# ## Enciende el laboratorio
#
# Ejecuta cada celda con **Mayús + Enter**. La primera vez se crean los datos: 300 usuarios, 6.000
# publicaciones y 10.000 comentarios en SQLite. También arranca un Redis de verdad, solo para ti.

# %% name="setup" tags=["setup"]
from labkit import Lab
from labkit.blog import create_app
from labkit.course import open_lesson

lab = Lab(create_app())
lesson = open_lesson("00_start", language="es", lab=lab)
lesson

# %% [markdown] name="predict-text"
# ## Predice antes de mirar
#
# Vas a pedir `/health/` 500 veces. Si ordenas las peticiones por tiempo, ¿cuántos milisegundos tarda la del medio
# (la mediana, o p50)? Cambia el 10 por tu número y ejecuta. No hay nota: enseguida ves cuánto te acercaste, y eso
# se entrena.

# %% name="predict" tags=["predict"]
lesson.predict("1", milliseconds=10)

# %% name="first-figure" tags=["measure"]
health = lab.load("/health/", requests=500, concurrency=1)
health.plot()

# %% name="actual" tags=["measure"]
lesson.actual("1", milliseconds=health.percentiles["p50"] * 1000)

# %% [markdown] name="reply-text"
# **¿Predijiste de más o de menos, y por cuántas veces?**
#
# ## Una petición, una respuesta
#
# `lab.get(...)` hace una petición a la aplicación, sin pasar por la red, y espera la respuesta. La tarjeta muestra el
# estado, el cuerpo, el tiempo y el número de consultas a la base de datos. **¿Cuántas consultas hizo esta petición?**

# %% name="reply" tags=["measure"]
lab.get("/performance/fast-endpoint")

# %% [markdown] name="exercise-text"
# ## Ejercicio 0.1: un saludo
#
# Dificultad: baja · Importancia: media · **3 minutos**
#
# El endpoint de abajo funciona y está mal: saluda igual a todo el mundo. Corrígelo para que `/hello/Ana` responda
# `{"message": "Hola, Ana"}`. Ejecuta otra vez su celda, y la nueva versión **reemplaza** a la anterior; después, la
# celda que comprueba.


# %% name="hello" tags=["exercise"] exercise="0.1" minutes=3
# starter
@lab.app.get("/hello/{name}")
async def hello(name: str):
    return {"message": "Hola, mundo"}


# solution
@lab.app.get("/hello/{name}")
async def hello(name: str):
    return {"message": f"Hola, {name}"}


# end

# %% name="hello-check" tags=["check"]
lesson.check("0.1", hello)

# %% [markdown] name="hint-text"
# La tarjeta dice en qué estado estás: por hacer, error, casi, hecho. Si te atascas, pide una pista. Cada vez que
# ejecutas la celda sale la siguiente: pregunta, lugar, herramienta, código. Se anotan, no restan.

# %% name="hint" tags=["check"]
lesson.hint("0.1")

# %% [markdown] name="error-text"
# ## Cuando algo falla
#
# Un endpoint que falla no rompe el cuaderno: la respuesta es 500 y señala **tu** línea.


# %% name="error" tags=["measure"]
@lab.app.get("/broken")
async def broken():
    return {"result": 1 / 0}


lab.get("/broken")

# %% [markdown] name="end-text"
# ## Tu avance
#
# Todo lo que haces se guarda en la carpeta `work/`: cuadernos, predicciones y reportes. Puedes cerrar y seguir otro
# día. Ahora abre `01_profiling.ipynb`.

# %% name="progress" tags=["reflect"]
lesson.progress()

# %% name="close" tags=["setup"]
lab.close()
