// Addresses of screens: #/p/PROJECT/SCREEN/ITEM, and #/compare, which is of no project

export const address = (project, screen, item) => `#/p/${project}/${screen}${item ? `/${item}` : ""}`;

export function place() {
  if (location.hash === "#/compare") return { project: 0, screen: "compare", item: 0 };
  const [, project, screen, item] = /^#\/p\/(\d+)\/(\w+)(?:\/(\d+))?$/.exec(location.hash) || [];
  return { project: Number(project) || 0, screen: screen || "home", item: Number(item) || 0 };
}
