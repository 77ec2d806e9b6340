// LangChain4j's Ollama module, as ThingsBoard uses it: Basic and Bearer by custom headers.
// The form of the lines printed is described in ../report.py.

import dev.langchain4j.exception.AuthenticationException;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.ollama.OllamaChatModel;
import dev.langchain4j.model.ollama.OllamaEmbeddingModel;
import dev.langchain4j.model.ollama.OllamaStreamingChatModel;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

public class Main {
    static final String GATE = System.getenv("GATE");
    static final String MODEL = System.getenv("MODEL");
    static final Duration PATIENCE = Duration.ofSeconds(60);

    public static void main(String[] arguments) {
        var bearer = bearer(System.getenv("KEY"));
        var basic = basic(System.getenv("PASSWORD"));
        for (var login : List.of(Map.entry("Bearer", bearer), Map.entry("Basic", basic))) {
            var headers = login.getValue();
            check("langchain4j: chat, whole and streaming, " + login.getKey(), () -> chat(headers));
            check("langchain4j: embeddings, " + login.getKey(), () -> embeddings(headers));
        }
        refused("langchain4j: wrong key", bearer(System.getenv("WRONG_KEY")), "SAYS_WRONG_KEY");
        refused("langchain4j: wrong password", basic("not the password"), "SAYS_WRONG_PASSWORD");
    }

    static void chat(Map<String, String> headers) throws Exception {
        var whole = whole(headers).chat("hello");
        var parts = new java.util.concurrent.ConcurrentLinkedQueue<String>();
        var end = new CompletableFuture<ChatResponse>();
        streaming(headers).chat("hello", handler(parts, end));
        end.get(60, TimeUnit.SECONDS);
        expect(parts.size() > 2, "a stream of " + parts.size() + " parts");
        expect(String.join("", parts).equals(whole), "streamed, it reads otherwise");
    }

    static void embeddings(Map<String, String> headers) {
        var model = OllamaEmbeddingModel.builder().baseUrl(GATE).modelName(MODEL)
                .customHeaders(headers).timeout(PATIENCE).build();
        expect(model.embed("one").content().dimension() == 64, "another vector than one of 64");
    }

    static void refused(String name, Map<String, String> headers, String gateSays) {
        check(name, () -> {
            try {
                whole(headers).chat("hello");
                expect(false, "no error");
            } catch (AuthenticationException error) {
                expectRefusal(name, error, System.getenv(gateSays));
            }
        });
        check(name + ", streaming", () -> {
            var end = new CompletableFuture<ChatResponse>();
            streaming(headers).chat("hello", handler(new java.util.ArrayDeque<>(), end));
            var error = end.handle((answer, thrown) -> thrown).get(60, TimeUnit.SECONDS);
            expect(error instanceof AuthenticationException, "it is " + error);
        });
    }

    static OllamaChatModel whole(Map<String, String> headers) {
        return OllamaChatModel.builder().baseUrl(GATE).modelName(MODEL).temperature(0.0)
                .numPredict(16).customHeaders(headers).timeout(PATIENCE).build();
    }

    static OllamaStreamingChatModel streaming(Map<String, String> headers) {
        return OllamaStreamingChatModel.builder().baseUrl(GATE).modelName(MODEL).temperature(0.0)
                .numPredict(16).customHeaders(headers).timeout(PATIENCE).build();
    }

    static StreamingChatResponseHandler handler(
            java.util.Collection<String> parts, CompletableFuture<ChatResponse> end) {
        return new StreamingChatResponseHandler() {
            @Override
            public void onPartialResponse(String part) {
                parts.add(part);
            }

            @Override
            public void onCompleteResponse(ChatResponse answer) {
                end.complete(answer);
            }

            @Override
            public void onError(Throwable thrown) {
                end.completeExceptionally(thrown);
            }
        };
    }

    static Map<String, String> bearer(String key) {
        return Map.of("Authorization", "Bearer " + key);
    }

    static Map<String, String> basic(String password) {
        var login = (System.getenv("NAME") + ":" + password).getBytes(StandardCharsets.UTF_8);
        return Map.of("Authorization", "Basic " + Base64.getEncoder().encodeToString(login));
    }

    // ---- telling ---------------------------------------------------------------------------------

    interface Step {
        void run() throws Exception;
    }

    static class Unexpected extends RuntimeException {
        Unexpected(String why) {
            super(why);
        }
    }

    static void check(String name, Step step) {
        try {
            step.run();
            System.out.println("ok " + name);
        } catch (Unexpected why) {
            System.out.println("FAILED " + name + ": " + oneLine(why.getMessage()));
        } catch (Exception why) {
            System.out.println("FAILED " + name + ": " + oneLine(why.toString()));
        }
    }

    static void expect(boolean condition, String why) {
        if (!condition) {
            throw new Unexpected(why);
        }
    }

    static void expectRefusal(String name, Exception shown, String gateSays) {
        System.out.println("says " + name + ": " + oneLine(shown.toString()));
        expect(shown.getMessage().contains(gateSays), "the gate said \"" + gateSays + "\"");
    }

    static String oneLine(String text) {
        return text.lines().map(String::strip).filter(line -> !line.isEmpty())
                .collect(Collectors.joining(" | "));
    }
}
