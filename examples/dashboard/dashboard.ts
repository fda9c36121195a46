// The dashboard of dashboard.py on types that openapi-typescript makes:
//
//   npm install
//   npx openapi-typescript $ESPALIER_URL/openapi.json --output schema.d.ts
//   npx tsc
//   ESPALIER_API_KEY=… node dashboard.ts

import createClient from "openapi-fetch";
import type { components, paths } from "./schema.d.ts";

type Job = components["schemas"]["JobRead"];
type Spec = components["schemas"]["CompressionSpec"];

const client = createClient<paths, `${string}/${string}json`>({
  baseUrl: process.env.ESPALIER_URL,
  headers: { Authorization: `Bearer ${process.env.ESPALIER_API_KEY}` },
});

async function submit(): Promise<Job> {
  const spec: Spec = {
    model: { id: "bookworm-7m" },
    score: { method: "magnitude" },
    prune: { method: "mask", sparsity: 0.3 },
    evaluate: [{ method: "perplexity", dataset: "heldout.txt", sequence_length: 256, samples: 8 }],
  };
  const { data, error } = await client.POST("/v1/jobs", { body: { spec, labels: { from: "dashboard" } } });
  if (error !== undefined) throw new Error(error.detail);
  if (!("id" in data)) throw new Error("this was no dry run");
  return data;
}

async function follow(job: Job): Promise<Job> {
  while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { data } = await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: job.id } } });
    job = data ?? job; // without an answer the service is busy: ask again
    const at = job.progress;
    console.log(job.status, at === null ? "" : `${at.stage} ${at.done}/${at.total} ${at.unit}`);
  }
  return job;
}

const job = await follow(await submit());
const latest = await client.GET("/v1/jobs", { params: { query: { limit: 10 } } });
for (const each of latest.data?.data ?? []) {
  console.log(each.created_at, each.status, each.id, each.spec.model.id);
}
const { data: report, error } = await client.GET("/v1/jobs/{job_id}/report", { params: { path: { job_id: job.id } } });
if (error !== undefined) throw new Error(error.detail);
console.log(`\n${report.spec.model.id}: ${(100 * report.sparsity).toFixed(1)} % removed`);
for (const metric of report.metrics) {
  console.log(`${metric.name} ${metric.dense.toPrecision(4)} -> ${metric.pruned.toPrecision(4)} ${metric.unit}`);
}
