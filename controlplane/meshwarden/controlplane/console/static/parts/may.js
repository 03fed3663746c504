// What the one who looks may do; the server decides, and buttons that it would refuse aren't shown.

const OF_EDITORS = new Set(["Apply", "Put", "Delete", "Remove", "Rollback"]);
const OF_THE_MESH = new Set(["BanNode", "UnbanNode", "EvictNode", "ChangeRoot", "ChangeJwtKey"]);

/** Whether `me` may call a method that changes something. */
export function may(me, method) {
  if (me.tenant && OF_THE_MESH.has(method)) return false;
  return me.role === "ADMIN" || (me.role === "EDITOR" && OF_EDITORS.has(method));
}
