"""The ray-caster draws what MuJoCo's own geometry says is there."""

# pyright: reportAttributeAccessIssue=false

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mistjax.envs.board import drawing, raycast, solids
from mistjax.envs.board import scene as s
from mistjax.envs.board.drawing import GlCamera, board_appearance, board_poses, solid_ids

SIZE = 64
QUARTER = np.pi / 8
TILTS = {
    "flat": (1.0, 0.0, 0.0, 0.0),
    "rolled": (np.cos(QUARTER), np.sin(QUARTER), 0.0, 0.0),
    "pitched": (np.cos(2 * QUARTER), 0.0, np.sin(2 * QUARTER), 0.0),
}


def posed(scene=None, tilt="flat", gripper=(0.05, 0.04, 0.09), stones=("black", "white", "black")):
    scene = scene or s.BoardScene()
    model = s.build_model(scene, stones)
    data = mujoco.MjData(model)
    data.qpos[:5] = [*gripper, 0.012, 0.012]
    free = data.qpos[5:].reshape(-1, 7)
    free[:, :3] = [[0.05, 0.04, 0.08], [0.15, -0.08, 0.013], [-0.04, -0.04, 0.02]][: len(stones)]
    free[:, 3:] = TILTS[tilt]
    mujoco.mj_forward(model, data)
    return scene, model, data


def stones_of(model):
    geoms = [model.geom(i) for i in range(model.ngeom)]
    return tuple(model.material(int(g.matid[0])).name for g in geoms if g.name.startswith("stone"))


def draw(scene, model, data):
    poses, appearance = board_poses(model, data), board_appearance(scene, stones_of(model))
    return np.asarray(raycast.pictures(poses, appearance, size=SIZE, shadow=scene.shadow))


def mujoco_ids(model, data, camera):
    """The id of the first geom on each pixel's ray, by MuJoCo's own ray test."""
    index = drawing.CAMERAS.index(camera)
    half = np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
    steps = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1) * half
    frame, eye = data.cam_xmat[index].reshape(3, 3), data.cam_xpos[index]
    ids, geom = np.zeros((SIZE, SIZE), int), np.zeros(1, np.int32)
    names = solid_ids()
    for row, y in enumerate(-steps):
        for column, x in enumerate(steps):
            ray = frame @ np.array([x, y, -1.0])
            mujoco.mj_ray(model, data, eye, ray, None, 1, -1, geom)
            name = model.geom(int(geom[0])).name if geom[0] >= 0 else "sky"
            ids[row, column] = names["board" if name.startswith("line") else name]
    return ids


def test_the_look_of_a_scene_has_the_models_sizes_and_materials():
    scene, model, _ = posed(s.BoardScene(board_reflectivity=0.3))
    appearance = board_appearance(scene, stones_of(model))
    sizes = [*appearance.box_size, *appearance.ellipsoid_size, *appearance.capsule_size]
    for i, name in enumerate(drawing.SOLIDS):
        if name in {model.geom(g).name for g in range(model.ngeom)}:
            geom = model.geom(name)
            material = model.material(int(geom.matid[0]))
            np.testing.assert_allclose(sizes[i], geom.size[: len(sizes[i])], rtol=1e-6)
            np.testing.assert_array_equal(appearance.rgb[i], material.rgba[:3])
            np.testing.assert_array_equal(appearance.specular[i], np.ravel(material.specular)[0])


@pytest.mark.parametrize("tilt", TILTS)
def test_every_pixel_shows_the_solid_that_mujocos_rays_hit(tilt):
    scene, model, data = posed(tilt=tilt)
    appearance = board_appearance(scene, stones_of(model))
    ids = np.asarray(raycast.segmentation(board_poses(model, data), appearance, size=SIZE))
    for picture, camera in zip(ids, drawing.CAMERAS, strict=True):
        expected = mujoco_ids(model, data, camera)
        assert len(np.unique(expected)) > 4
        assert (picture != expected).mean() < 0.002


SHAPES = {
    "box": (0.05, 0.03, 0.02),
    "ellipsoid": (0.05, 0.03, 0.02),
    "cylinder": (0.03, 0.05),
    "capsule": (0.02, 0.04),
}


def _first_hit(kind, o, d):
    """Ray parameter and unit normal by the ray-caster's own geometry."""
    size = jnp.asarray(SHAPES[kind])
    t = getattr(solids, f"hit_{kind}")(o, d, size)
    point = tuple(o[i] + t * d[i] for i in range(3))
    return t, jnp.stack(solids.unit(getattr(solids, f"normal_{kind}")(point, size)), 1)


@pytest.mark.parametrize("kind", SHAPES)
def test_each_kind_of_solid_is_hit_where_mujoco_hits_it_and_faces_the_same_way(kind):
    rng = np.random.default_rng(0)
    size = SHAPES[kind]
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><worldbody><geom type="{kind}" size="{" ".join(map(str, size))}"/>'
        "</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    eyes = rng.normal(size=(400, 3))
    eyes = 0.2 * eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    rays = rng.uniform(-0.05, 0.05, (400, 3)) - eyes
    o, d = (tuple(jnp.asarray(v[:, i], jnp.float32) for i in range(3)) for v in (eyes, rays))
    t, facing = (np.asarray(v) for v in jax.jit(_first_hit, static_argnums=0)(kind, o, d))
    expected, normal = np.zeros(400), np.zeros((400, 3))
    for i in range(400):
        hit = np.zeros(1, np.int32)
        expected[i] = mujoco.mj_ray(model, data, eyes[i], rays[i], None, 1, -1, hit, normal[i])
    seen = expected > 0
    assert 100 < seen.sum() < 400
    assert ((t < solids.FAR / 2) != seen).mean() < 0.01
    both = seen & (t < solids.FAR / 2)
    assert np.abs(t - expected)[both].max() < 1e-3
    assert np.median((facing * normal).sum(1)[both]) > 0.999
    assert ((facing * normal).sum(1)[both] > 0.99).mean() > 0.98


def test_a_tilted_stone_is_drawn_tilted():
    flat, tilted = (draw(*posed(tilt=tilt)) for tilt in ("flat", "pitched"))
    assert np.abs(flat.astype(int) - tilted).max() > 100


def test_lines_cross_on_the_cells():
    above = s.Camera(position=(1e-4, 0.0, 1.0), target=(0.0, 0.0, 0.0), fovy=12.5)
    scene, model, data = posed(s.BoardScene(front=above), gripper=(-0.2, 0.2, 0.3))
    data.geom_xpos[-3:, 2] = -1
    grey = draw(scene, model, data)[0].mean(-1)
    metres = 2 * np.tan(np.deg2rad(12.5 / 2)) * (1 - s.BOARD_TOP) / SIZE
    for row in range(1, 6):
        for column in range(1, 6):
            x, y = s.cell_xy(row, column) / metres + SIZE / 2
            patch = grey[int(x) - 2 : int(x) + 3, int(y) - 2 : int(y) + 3]
            assert patch.min() < 0.8 * np.median(grey)


def test_a_batch_equals_single_pictures():
    scene, model, data = posed()
    poses, appearance = board_poses(model, data), board_appearance(scene, stones_of(model))
    batch = raycast.Poses(*(np.stack([a, a]) for a in poses))
    drawn = np.asarray(raycast.picture_batch(batch, appearance, size=SIZE, shadow=False))
    assert np.abs(drawn[1].astype(int) - draw(scene, model, data)).max() <= 1


def test_a_shadow_only_darkens():
    scene, model, data = posed()
    bright = draw(scene, model, data).astype(int)
    dark = draw(dataclasses.replace(scene, shadow=True), model, data).astype(int)
    assert (dark <= bright).all()
    assert (bright - dark > 20).mean() > 0.005


def test_the_number_of_stones_does_not_change_the_compiled_program():
    scene, few, data = posed(stones=("black",))
    draw(scene, few, data)
    compiled = raycast.pictures._cache_size()
    draw(*posed(stones=("black", "white", "black")))
    assert raycast.pictures._cache_size() == compiled


@pytest.fixture(scope="module")
def gl():
    try:
        camera = GlCamera(SIZE)
    except RuntimeError:
        pytest.skip("needs OpenGL")
    yield camera
    camera.close()


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("gripper", [(0.05, 0.04, 0.09), (-0.1, -0.1, 0.12), (0.15, 0.1, 0.02)])
def test_the_picture_matches_mujocos_renderer(gl, tilt, gripper):
    scene, model, data = posed(tilt=tilt, gripper=gripper)
    difference = np.abs(draw(scene, model, data).astype(int) - gl.pictures(model, data, scene))
    assert difference.mean(axis=(1, 2, 3)).max() < 8
