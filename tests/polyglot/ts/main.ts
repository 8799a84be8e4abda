// A client of Karta in TypeScript: a session, a turn, an approval, a watch that is cut and goes on, an error.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createWritableIterable } from "@connectrpc/connect/protocol";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { type ErrorInfo, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { ErrorReason } from "./gen/karta/v1/error_pb.js";
import type { Event, TurnFinished } from "./gen/karta/v1/event_pb.js";
import { SessionReuse, SessionService } from "./gen/karta/v1/session_service_pb.js";
import { TurnState } from "./gen/karta/v1/turn_pb.js";
import { ConverseRequestSchema, type StartTurnRequestSchema, TurnService } from "./gen/karta/v1/turn_service_pb.js";

// A sequence that a number cannot hold; uint64 is bigint.
const BEYOND = 2n ** 53n + 1n;
// The id of no session.
const NOBODYS = "00000000-0000-7000-8000-000000000000";

type Sessions = Client<typeof SessionService>;
type Turns = Client<typeof TurnService>;

async function main(address: string, prompt: string): Promise<void> {
  const baseUrl = `http://${address}`;
  const connection = new Http2SessionManager(baseUrl);
  try {
    await run(createGrpcTransport({ baseUrl, sessionManager: connection, defaultTimeoutMs: 60_000 }), prompt);
  } finally {
    // An idle connection would keep the process alive.
    connection.abort();
  }
}

async function run(transport: Transport, prompt: string): Promise<void> {
  const sessions = createClient(SessionService, transport);
  const turns = createClient(TurnService, transport);

  const { session, reused } = await sessions.createSession({
    metadata: { customer_id: "ts" },
    reuse: SessionReuse.LATEST,
  });
  if (!session) throw new Error("no session");
  const { sessionId } = session;

  const firstText = await runTurn(turns, sessionId, "Hello!");
  const { approvedTool, finalText } = await converse(turns, sessionId, prompt);
  const sequences = await watchWithACut(sessions, sessionId);
  const contiguous = sequences.every((sequence, index) => sequence === BigInt(index) + 1n);

  const unknown = await failure("SESSION_NOT_FOUND", () => sessions.getSession({ sessionId: NOBODYS }));
  const beyond = await failure("SEQUENCE_OUT_OF_RANGE", () => watch(sessions, sessionId, BEYOND, () => true));

  // 64-bit numbers are strings, as in the JSON of protobuf: JSON.stringify refuses bigint.
  const saw = {
    language: "ts",
    session_id: sessionId,
    reused,
    first_text: firstText,
    approved_tool: approvedTool,
    final_text: finalText,
    events: sequences.length,
    contiguous,
    last_sequence: String(sequences.at(-1)),
    unknown_session: unknown.metadata.session_id,
    cursor_beyond_end: beyond.metadata.after_sequence,
  };
  console.log(JSON.stringify(saw));
  if (!contiguous) throw new Error("the log has a gap or a duplicate");
}

/** Prints the answer while it is written, and returns the final message. */
async function runTurn(turns: Turns, sessionId: string, text: string): Promise<string> {
  let final = "";
  for await (const frame of turns.runTurn({ start: startTurn(sessionId, text) })) {
    for (const { kind } of frame.events) {
      switch (kind.case) {
        case "text":
          process.stdout.write(kind.value.text);
          break;
        case "messageCompleted":
          process.stdout.write("\n");
          final = kind.value.text;
          break;
        case "turnFinished":
          requireCompleted(kind.value);
      }
    }
  }
  return final;
}

/** Sends a message and allows what the agent asks for, all on one stream. */
async function converse(turns: Turns, sessionId: string, text: string) {
  const commands = createWritableIterable<MessageInitShape<typeof ConverseRequestSchema>>();
  // A write is done when the stream has taken it, and fails when the stream has: then the loop below throws why.
  const send = (command: MessageInitShape<typeof ConverseRequestSchema>) => void commands.write(command).catch(() => {});
  send({ commandId: "open", command: { case: "open", value: { sessionId } } });
  send({ commandId: "start", command: { case: "startTurn", value: startTurn("", text) } });

  let approvedTool = "";
  let finalText = "";
  for await (const { content } of turns.converse(commands)) {
    if (content.case === "commandResult" && content.value.result.case === "error") {
      const { reason, message } = content.value.result.value;
      throw new Error(`${ErrorReason[reason]}: ${message}`);
    }
    for (const { kind } of content.case === "frame" ? content.value.events : []) {
      switch (kind.case) {
        case "inputRequired": {
          const { inputRequestId = "", toolName = "" } = kind.value.inputRequest ?? {};
          approvedTool = toolName;
          const response = { choice: { case: "allow" as const, value: {} } };
          send({ commandId: "allow", command: { case: "respond", value: { inputRequestId, response } } });
          break;
        }
        case "messageCompleted":
          finalText = kind.value.text;
          break;
        case "turnFinished":
          requireCompleted(kind.value);
          commands.close();
      }
    }
  }
  return { approvedTool, finalText };
}

/** Reads the log, loses the stream in the middle, and goes on behind the last event that it has handled. */
async function watchWithACut(sessions: Sessions, sessionId: string): Promise<bigint[]> {
  const { session } = await sessions.getSession({ sessionId });
  const end = session?.latestSequence ?? 0n;
  const sequences: bigint[] = [];
  for (const until of [end / 2n, end]) {
    await watch(sessions, sessionId, sequences.at(-1) ?? 0n, ({ sequence }) => {
      sequences.push(sequence);
      return sequence < until;
    });
  }
  return sequences;
}

/** Hands on the events behind a sequence until `handle` returns false; then it cuts the stream. */
async function watch(sessions: Sessions, sessionId: string, afterSequence: bigint, handle: (event: Event) => boolean) {
  const cut = new AbortController();
  try {
    const request = { sessionId, afterSequence, follow: true };
    // Without a deadline: a watch is open for as long as somebody looks.
    for await (const frame of sessions.watchSession(request, { signal: cut.signal, timeoutMs: 0 })) {
      for (const event of frame.events) {
        if (!handle(event)) return;
      }
    }
  } finally {
    cut.abort();
  }
}

function startTurn(sessionId: string, text: string): MessageInitShape<typeof StartTurnRequestSchema> {
  return { sessionId, message: { parts: [{ content: { case: "text", value: text } }] } };
}

function requireCompleted({ state, error }: TurnFinished): void {
  if (state !== TurnState.COMPLETED) throw new Error(`the turn ended as ${TurnState[state]}: ${error?.message}`);
}

/** Makes a call that must fail for this reason, and returns what Karta says about it. */
async function failure(reason: string, call: () => Promise<unknown>): Promise<ErrorInfo> {
  try {
    await call();
  } catch (error) {
    const details = ConnectError.from(error).findDetails(ErrorInfoSchema);
    const info = details.find((detail) => detail.domain === "karta.sh");
    if (info?.reason === reason) return info;
    throw error;
  }
  throw new Error(`expected ${reason}`);
}

const [address, prompt] = process.argv.slice(2);
if (!address || !prompt) {
  throw new Error("usage: main.js ADDRESS PROMPT (one that makes the agent ask for a permission)");
}
await main(address, prompt);
