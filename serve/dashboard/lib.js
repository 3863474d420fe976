// What the page is built on: Preact, written as templates by htm. Everything that a template interpolates is text.

export const { h, render, Fragment } = globalThis.preact;
export const { useEffect, useErrorBoundary, useRef, useState } = globalThis.preactHooks;
export const uPlot = globalThis.uPlot;
export const html = globalThis.htm.bind(h);
