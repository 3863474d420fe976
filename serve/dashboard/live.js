// The figures and the replicas, asked for again and again. What was last heard stays when the endpoint goes away.

import { useEffect, useState } from "./lib.js";
import { ask } from "./server.js";

const EVERY_MS = 2_000;
const PATIENCE_S = 10;
const FORGET_REPLICA_MS = 60_000; // each question is answered by one of them
export const FIGURES_OLD_S = 20; // the worker writes every 2 s

const BEGINNING = { link: "starting", reason: "", figures: {}, writtenMs: null, replicas: {}, aheadMs: 0, heardMs: null };

/** Return what is known now, and a function that asks at once. */
export const useLive = () => {
  const [live, setLive] = useState(BEGINNING);
  const [round, setRound] = useState(0);
  useEffect(() => {
    const leaving = new AbortController();
    let timer;
    const go = async () => {
      clearTimeout(timer);
      const change = document.hidden ? null : await heard(leaving.signal);
      if (leaving.signal.aborted) return;
      if (change) setLive(change);
      timer = setTimeout(go, EVERY_MS);
    };
    const comesBack = () => !document.hidden && setRound((number) => number + 1);
    document.addEventListener("visibilitychange", comesBack);
    go();
    return () => {
      leaving.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", comesBack);
    };
  }, [round]);
  return [live, () => setRound((number) => number + 1)];
};

const heard = async (signal) => {
  try {
    const asked = { signal, patienceS: PATIENCE_S };
    const [freshness, status] = await Promise.all([ask("v1/freshness", asked), ask("v1/status", asked)]);
    return (last) => ({
      link: "live",
      reason: "",
      figures: freshness.answer.figures ?? {},
      writtenMs: freshness.answer.written_time_ms,
      replicas: replicasWith(last.replicas, status.answer),
      aheadMs: difference(freshness.timeMs, Date.now()),
      heardMs: Date.now(),
    });
  } catch (error) {
    const link = { 401: "locked", 429: "busy" }[error.status] ?? "lost";
    return (last) => ({ ...last, link, reason: error.message });
  }
};

/** Return by how much the server's clock, told in whole seconds, differs from this one; 0 for what may be rounding. */
const difference = (serverMs, hereMs) => (Math.abs(serverMs - hereMs) < 2_000 ? 0 : serverMs - hereMs);

const replicasWith = (known, status) => {
  const recent = Object.entries(known).filter(([, { heardMs }]) => Date.now() - heardMs < FORGET_REPLICA_MS);
  return { ...Object.fromEntries(recent), [status.replica]: { ...status, heardMs: Date.now() } };
};
