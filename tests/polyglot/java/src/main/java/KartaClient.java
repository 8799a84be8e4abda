import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Predicate;
import sh.karta.v1.Allow;
import sh.karta.v1.ConverseRequest;
import sh.karta.v1.CreateSessionRequest;
import sh.karta.v1.Event;
import sh.karta.v1.GetSessionRequest;
import sh.karta.v1.InputResponse;
import sh.karta.v1.Message;
import sh.karta.v1.OpenConversation;
import sh.karta.v1.Part;
import sh.karta.v1.RespondToInputRequest;
import sh.karta.v1.RunTurnRequest;
import sh.karta.v1.SessionReuse;
import sh.karta.v1.SessionServiceGrpc;
import sh.karta.v1.StartTurnRequest;
import sh.karta.v1.TurnFinished;
import sh.karta.v1.TurnServiceGrpc;
import sh.karta.v1.TurnState;
import sh.karta.v1.WatchSessionRequest;

/** A client of Karta in Java: a session, a turn, an approval, a watch that is cut and goes on, an error. */
public final class KartaClient {
    /** A sequence that a double cannot hold. uint64 is a signed long here: sequences stay far below its sign. */
    private static final long BEYOND = (1L << 53) + 1;
    /** The id of no session. */
    private static final String NOBODYS = "00000000-0000-7000-8000-000000000000";

    private final SessionServiceGrpc.SessionServiceBlockingV2Stub sessions;
    private final TurnServiceGrpc.TurnServiceBlockingV2Stub turns;

    /** What the program saw. 64-bit numbers are strings, as in the JSON of protobuf. */
    private record Report(
            String language,
            String session_id,
            boolean reused,
            String first_text,
            String approved_tool,
            String final_text,
            int events,
            boolean contiguous,
            String last_sequence,
            String unknown_session,
            String cursor_beyond_end) {}

    private record Conversation(String approvedTool, String finalText) {}

    /** A call that throws. */
    private interface Call {
        void run() throws Exception;
    }

    private KartaClient(ManagedChannel channel) {
        Duration limit = Duration.ofMinutes(1);
        sessions = SessionServiceGrpc.newBlockingV2Stub(channel).withDeadlineAfter(limit);
        turns = TurnServiceGrpc.newBlockingV2Stub(channel).withDeadlineAfter(limit);
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 2) {
            System.err.println("usage: KartaClient ADDRESS PROMPT (one that makes the agent ask for a permission)");
            System.exit(2);
        }
        var channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
        try {
            Report saw = new KartaClient(channel).run(arguments[1]);
            System.out.println(new Gson().toJson(saw));
            if (!saw.contiguous()) {
                throw new IllegalStateException("the log has a gap or a duplicate");
            }
        } finally {
            channel.shutdownNow();
        }
    }

    private Report run(String prompt) throws Exception {
        var created = sessions.createSession(CreateSessionRequest.newBuilder()
                .putMetadata("customer_id", "java")
                .setReuse(SessionReuse.SESSION_REUSE_LATEST)
                .build());
        String id = created.getSession().getSessionId();
        String firstText = runTurn(id, "Hello!");
        Conversation conversation = converse(id, prompt);
        List<Long> sequences = watchWithACut(id);
        ErrorInfo unknown = failure("SESSION_NOT_FOUND",
                () -> sessions.getSession(GetSessionRequest.newBuilder().setSessionId(NOBODYS).build()));
        ErrorInfo beyond = failure("SEQUENCE_OUT_OF_RANGE", () -> watch(id, BEYOND, event -> true));
        return new Report(
                "java",
                id,
                created.getReused(),
                firstText,
                conversation.approvedTool(),
                conversation.finalText(),
                sequences.size(),
                contiguous(sequences),
                Long.toUnsignedString(sequences.get(sequences.size() - 1)),
                unknown.getMetadataOrThrow("session_id"),
                beyond.getMetadataOrThrow("after_sequence"));
    }

    /** Prints the answer while it is written, and returns the final message. */
    private String runTurn(String sessionId, String text) throws Exception {
        var call = turns.runTurn(RunTurnRequest.newBuilder().setStart(startTurn(sessionId, text)).build());
        String finalText = "";
        for (var frame = call.read(); frame != null; frame = call.read()) {
            for (Event event : frame.getEventsList()) {
                switch (event.getKindCase()) {
                    case TEXT -> System.out.print(event.getText().getText());
                    case MESSAGE_COMPLETED -> {
                        System.out.println();
                        finalText = event.getMessageCompleted().getText();
                    }
                    case TURN_FINISHED -> requireCompleted(event.getTurnFinished());
                    default -> { }
                }
            }
        }
        return finalText;
    }

    /** Sends a message and allows what the agent asks for, all on one stream. */
    private Conversation converse(String sessionId, String text) throws Exception {
        var call = turns.converse();
        call.write(ConverseRequest.newBuilder()
                .setCommandId("open")
                .setOpen(OpenConversation.newBuilder().setSessionId(sessionId))
                .build());
        call.write(ConverseRequest.newBuilder().setCommandId("start").setStartTurn(startTurn("", text)).build());
        String approvedTool = "";
        String finalText = "";
        for (var response = call.read(); response != null; response = call.read()) {
            if (response.getCommandResult().hasError()) {
                var error = response.getCommandResult().getError();
                throw new IllegalStateException(error.getReason() + ": " + error.getMessage());
            }
            for (Event event : response.getFrame().getEventsList()) {
                switch (event.getKindCase()) {
                    case INPUT_REQUIRED -> {
                        var asked = event.getInputRequired().getInputRequest();
                        approvedTool = asked.getToolName();
                        call.write(ConverseRequest.newBuilder()
                                .setCommandId("allow")
                                .setRespond(allow(asked.getInputRequestId()))
                                .build());
                    }
                    case MESSAGE_COMPLETED -> finalText = event.getMessageCompleted().getText();
                    case TURN_FINISHED -> {
                        requireCompleted(event.getTurnFinished());
                        call.halfClose();
                    }
                    default -> { }
                }
            }
        }
        return new Conversation(approvedTool, finalText);
    }

    /** Reads the log, loses the stream in the middle, and goes on behind the last event that it has handled. */
    private List<Long> watchWithACut(String sessionId) throws Exception {
        var request = GetSessionRequest.newBuilder().setSessionId(sessionId).build();
        long end = sessions.getSession(request).getSession().getLatestSequence();
        List<Long> sequences = new ArrayList<>();
        for (long until : new long[] {end / 2, end}) {
            long last = sequences.isEmpty() ? 0 : sequences.get(sequences.size() - 1);
            watch(sessionId, last, event -> {
                sequences.add(event.getSequence());
                return event.getSequence() < until;
            });
        }
        return sequences;
    }

    /** Hands on the events behind a sequence until the handler returns false; then it cuts the stream. */
    private void watch(String sessionId, long afterSequence, Predicate<Event> handler) throws Exception {
        var call = sessions.watchSession(WatchSessionRequest.newBuilder()
                .setSessionId(sessionId)
                .setAfterSequence(afterSequence)
                .setFollow(true)
                .build());
        try {
            for (var frame = call.read(); frame != null; frame = call.read()) {
                for (Event event : frame.getEventsList()) {
                    if (!handler.test(event)) {
                        return;
                    }
                }
            }
        } finally {
            call.cancel("seen enough", null);
        }
    }

    private static StartTurnRequest startTurn(String sessionId, String text) {
        var message = Message.newBuilder().addParts(Part.newBuilder().setText(text));
        return StartTurnRequest.newBuilder().setSessionId(sessionId).setMessage(message).build();
    }

    private static RespondToInputRequest allow(String inputRequestId) {
        return RespondToInputRequest.newBuilder()
                .setInputRequestId(inputRequestId)
                .setResponse(InputResponse.newBuilder().setAllow(Allow.getDefaultInstance()))
                .build();
    }

    private static void requireCompleted(TurnFinished finished) {
        if (finished.getState() != TurnState.TURN_STATE_COMPLETED) {
            throw new IllegalStateException(
                    "the turn ended as " + finished.getState() + ": " + finished.getError().getMessage());
        }
    }

    /** Makes a call that must fail for this reason, and returns what Karta says about it. */
    private static ErrorInfo failure(String reason, Call call) throws Exception {
        try {
            call.run();
        } catch (StatusException failed) {
            ErrorInfo info = errorInfo(failed);
            if (info.getReason().equals(reason)) {
                return info;
            }
            throw failed;
        }
        throw new IllegalStateException("expected " + reason);
    }

    private static ErrorInfo errorInfo(StatusException failed) throws InvalidProtocolBufferException {
        for (Any detail : StatusProto.fromThrowable(failed).getDetailsList()) {
            if (detail.is(ErrorInfo.class) && detail.unpack(ErrorInfo.class).getDomain().equals("karta.sh")) {
                return detail.unpack(ErrorInfo.class);
            }
        }
        return ErrorInfo.getDefaultInstance();
    }

    /** Whether the sequences are 1, 2, 3, … */
    private static boolean contiguous(List<Long> sequences) {
        for (int index = 0; index < sequences.size(); index++) {
            if (sequences.get(index) != index + 1) {
                return false;
            }
        }
        return true;
    }
}
