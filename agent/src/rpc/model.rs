//! What can be made: the models that the runtimes of this host have.

use proto::v1;
use proto::v1::model_service_server::ModelService;
use tonic::{Request, Response, Status};

use super::status::{invalid_field, no_model};
use super::{Service, convert};

#[tonic::async_trait]
impl ModelService for Service {
    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let request = request.into_inner();
        let count = convert::page_size(request.page_size)?;
        let after = convert::page_after(&request.page_token)?.unwrap_or_default();
        let catalogue = self.supervisor.shared.models.get().await?;
        let mut rest = catalogue.models.values().filter(|it| *it.name > *after);
        let models: Vec<_> = rest.by_ref().take(count).collect();
        let next_page_token = match (models.last(), rest.next()) {
            (Some(last), Some(_)) => convert::page_token(&last.name),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListModelsResponse {
            models: models
                .into_iter()
                .map(|it| convert::model(it, &catalogue.program))
                .collect(),
            next_page_token,
        }))
    }

    async fn get_model(
        &self,
        request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::Model>, Status> {
        let Some(name) = request.get_ref().name.strip_prefix("models/") else {
            let why = "must be models/ and a name, as in models/e1000";
            return Err(invalid_field("name", why));
        };
        let catalogue = self.supervisor.shared.models.get().await?;
        match catalogue.models.get(name) {
            Some(model) => Ok(Response::new(convert::model(model, &catalogue.program))),
            None => Err(no_model(name, &convert::known_models(&catalogue))),
        }
    }
}
