// Addresses of screens: #/p/PROJECT/SCREEN/ITEM

export const address = (project, screen, item) => `#/p/${project}/${screen}${item ? `/${item}` : ""}`;

export function place() {
  const [, project, screen, item] = /^#\/p\/(\d+)\/(\w+)(?:\/(\d+))?$/.exec(location.hash) || [];
  return { project: Number(project) || 0, screen: screen || "home", item: Number(item) || 0 };
}
