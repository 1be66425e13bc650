# ---
# jupyter:
#   lesson:
#     gallery: true
#     running: 0.9
# ---

# %% [markdown] name="title"
# # Galería de trampas
#
# Aquí están las trampas que no caben en las lecciones. Cada ficha trae un código que parece correcto. Léelo, cambia
# `guess` por **tu predicción** y ejecuta: la tarjeta mide la trampa y su cura en tu máquina. Después cambia el código
# y ejecuta otra vez. No hay orden ni reloj.

# %% name="setup" tags=["setup"]
from labkit import Lab
from labkit.blog import Post, User, create_app
from labkit.course.gallery import open_gallery

lab = Lab(create_app(), redis=True)
gallery = open_gallery("08_trap_gallery", language="es", lab=lab)
gallery

# %% name="imports-1" tags=["setup"]
from sqlalchemy import func

# %% name="map" tags=["measure"]
gallery.map()

# %% [markdown] name="exercise-1"
# ## Ejercicio 1: rendimiento

# %% [markdown] name="T12-text"
# ### T12 · ¿La misma primera página?
#
# Dos endpoints, el lento y el rápido, piden «los primeros 50 usuarios» a PostgreSQL. ¿Cuántos usuarios tienen en
# común sus respuestas?


# %% name="T12" tags=["trap"]
# starter
def slow(db):
    return db.query(User.id).limit(50).all()


def fast(db):
    posts = func.count(Post.id)
    return db.query(User.id, posts).outerjoin(User.posts).group_by(User.id).limit(50).all()


# solution
def slow(db):
    return db.query(User.id).order_by(User.id).limit(50).all()


def fast(db):
    posts = func.count(Post.id)
    return db.query(User.id, posts).outerjoin(User.posts).group_by(User.id).order_by(User.id).limit(50).all()


# end

gallery.card("T12", slow, fast, guess=50)

# %% [markdown] name="exercise-2"
# ## Ejercicio 2: cache

# %% [markdown] name="exercise-3"
# ## Ejercicio 3: monitoreo

# %% name="seen" tags=["reflect"]
gallery

# %% name="close" tags=["setup"]
lab.close()
